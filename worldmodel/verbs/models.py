"""models: published ones, listed, downloaded, verified."""

from typing import TYPE_CHECKING

from worldmodel.verbs.shared import Call, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def models(config: "DictConfig", *, call: Call) -> int:
    """Lists, downloads or verifies published models; status 1 if a file is wrong."""
    from worldmodel import hub
    from worldmodel.names import unknown

    actions = ("list", "download", "verify")
    if config.action not in actions:
        raise UserError(unknown("action", config.action, actions))
    if config.action == "list":
        print(hub.list_models())
        return 0
    if config.source is None:
        raise UserError(f"models {config.action} needs a name or a path; see worldmodel models")
    if config.action == "download":
        print(hub.fetch(hub.find(config.source)))
        return 0
    report = hub.verify(config.source, against=config.against)
    print(report)
    return 0 if report.ok else 1
