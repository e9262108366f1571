"""`soul-unlearn`: Hydra composes the configuration, `run` does the rest.  Errors are one message and exit code 2."""

from __future__ import annotations

import logging
import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """Entry point.  The heavy imports come after the configuration has been composed and found sound."""
    import hydra
    from hydra.core.hydra_config import HydraConfig  # noqa: F401  registers resolvers
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from soul_cli.config import CONFIGS, load
    from soul_cli.types import UserError

    quiet()
    failed: list[str] = []

    def member(raw: DictConfig) -> str:
        from soul_cli.run import run

        try:
            return str(run(load(raw)))
        except UserError as error:
            failed.append(" ".join(sys.argv[1:]))
            say_error(str(error))
            return ""

    wrapped = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(member)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing a traceback
    try:
        wrapped()
    except (HydraException, OmegaConfBaseException) as error:
        say_error(explain(error))
        failed.append("")
    except KeyboardInterrupt:
        say_error("interrupted; the same command goes on from the last checkpoint")
        sys.exit(130)
    if failed:
        sys.exit(2)


def explain(error: Exception) -> str:
    """A composition error in one message: what, where, and what would be right."""
    cause: BaseException | None = error
    texts: list[str] = []
    while cause is not None:
        text = str(cause).strip()
        if text and text not in texts:
            texts.append(text)
        cause = cause.__cause__
    return "\n".join(texts)


def say_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)


def quiet() -> None:
    """Libraries' chatter off; their warnings about real problems stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
