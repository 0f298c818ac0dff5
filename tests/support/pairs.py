"""Every encoding, attention and model of conf/. New YAML files are found and tested without further work."""

from newllm.config.catalog import shipped

CONF = shipped()
ENCODINGS, ATTENTIONS, MODELS = (
    sorted(file.stem for file in (CONF / group).glob("*.yaml") if file.stem != "none")
    for group in ("pos_encoding", "attention", "model")
)
PAIRS = [(encoding, attention) for encoding in ENCODINGS for attention in ATTENTIONS]
