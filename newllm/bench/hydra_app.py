"""newllm's run as a plain Hydra application, for Hydra's own launchers: `python -m newllm.bench.hydra_app -m seed=1,2`.

`newllm bench sweep` compares `newllm train -m` with this: Hydra composes each job, and `hydra/launcher=basic` runs one
after another in this process.
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from newllm.config.catalog import shipped
from newllm.config.compose import compose, version_base


@hydra.main(config_path=str(shipped()), config_name="train", **version_base())
def main(_: DictConfig) -> int:
    """One job: its overrides, composed and checked as newllm does, and the run itself."""
    from newllm.run.execute import run

    return run(compose(list(HydraConfig.get().overrides.task)))


if __name__ == "__main__":
    main()
