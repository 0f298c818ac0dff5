"""newllm's launchers as Hydra launchers: `hydra/launcher=local` and `hydra/launcher=slurm`.

`newllm train -m` plans its sweep itself and calls `start`. A sweeper of somebody else's (`hydra/sweeper=…`) calls
`launch` with the runs of one batch. Every Hydra program of the environment imports this module when it starts, so it
imports nothing heavy.
"""

from hydra_plugins.newllm_launcher.adapter import Adapter
from newllm.sweep.local import Local
from newllm.sweep.slurm import Slurm


class LocalLauncher(Local, Adapter):
    """Slots of this machine, one process per run."""


class SlurmLauncher(Slurm, Adapter):
    """Job arrays of a SLURM cluster, through submitit."""
