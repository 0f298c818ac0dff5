"""Where text comes from: one small class per kind of corpus, all with the options of `corpus.Corpus`."""
