"""newllm's run as a plain Hydra application, for Hydra's own launchers: `python -m newllm.bench.hydra_app -m seed=1,2`.

This is what `newllm train -m` is measured against: Hydra composes each job, `hydra/launcher=basic` does one after
another in this process.
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from newllm.config.catalog import shipped


@hydra.main(version_base="1.3", config_path=str(shipped()), config_name="train")
def main(_: DictConfig) -> int:
    """One job: its overrides, composed and checked as newllm does, and the run itself."""
    from newllm.config import compose
    from newllm.run.execute import run

    return run(compose(list(HydraConfig.get().overrides.task)))


if __name__ == "__main__":
    main()
