"""push_to_hub: the kept model and its card, as a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from soul_cli.core.distributed import by_rank_0
from soul_cli.core.screen import log
from soul_cli.core.types import UserError


@by_rank_0
def check(name: str) -> None:
    """Refuse what could only fail once the model is trained: a name, no network, no token or one that the hub refuses.

    Whether the token may write is not asked: that shows when the repository is made.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"push_to_hub={name}: no name of a repository, OWNER/NAME or NAME ({error})") from None
    if hub.is_offline_mode():
        raise UserError(
            f"push_to_hub={name}: HF_HUB_OFFLINE is set, so the hub is out of reach; unset it, or leave push_to_hub out"
        )
    if hub.get_token() is None:
        raise UserError(f"push_to_hub={name}: there is no token; set HF_TOKEN, or log in by `hf auth login`")
    try:
        hub.HfApi().whoami()
    except Exception as error:
        raise UserError(f"push_to_hub={name}: {explain(error)}") from error


@by_rank_0
def push(name: str, model: Path) -> None:
    """Upload the folder `model` to the repository `name`, which is made private where there is none.

    UserError: the hub refuses.  The folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        place = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=place.repo_id, folder_path=model, commit_message="Upload an unlearned model")
    except Exception as error:
        raise UserError(
            f"push_to_hub={name}: {explain(error)}. The model is kept in {model}, and the same command uploads it"
        ) from error
    log(f"pushed to {place}")


def explain(error: Exception) -> str:
    """Return in one line what the hub or the network said."""
    response = getattr(error, "response", None)
    refused = "the hub refuses the token" if getattr(response, "status_code", None) in (401, 403) else "the hub failed"
    return f"{refused} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
