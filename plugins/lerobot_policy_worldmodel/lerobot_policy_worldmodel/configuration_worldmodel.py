"""What LeRobot's command line may set of the policy."""

from dataclasses import dataclass, field

from lerobot.configs import PreTrainedConfig

from .mapping import ACTION_NAMES


@PreTrainedConfig.register_subclass("worldmodel")
@dataclass
class WorldmodelConfig(PreTrainedConfig):
    """A planner server, which has the model and the goals; nothing is computed here.

    Attributes:
        url: of the server; it must be told action_space=joint_velocity, its default.
        camera: whose pictures are compared with the goal's.
        token_file: with the server's token; the variable WORLDMODEL_TOKEN does as well.
        timeout_s: for a plan.
        action_feature_names: what the numbers of an action are; the robot must have these names.
        device: where LeRobot puts the pictures before they are sent.
    """

    url: str = "ws://127.0.0.1:8000"
    camera: str = "exterior"
    token_file: str | None = None
    timeout_s: float = 60.0
    action_feature_names: list[str] = field(default_factory=lambda: list(ACTION_NAMES))
    device: str | None = "cpu"

    @property
    def observation_delta_indices(self) -> None:
        """No observation but the present one is used."""
        return None

    @property
    def action_delta_indices(self) -> None:
        """Nothing is trained."""
        return None

    @property
    def reward_delta_indices(self) -> None:
        """Nothing is trained."""
        return None

    def get_optimizer_preset(self) -> None:
        """Nothing is trained."""
        return None

    def get_scheduler_preset(self) -> None:
        """Nothing is trained."""
        return None

    def validate_features(self) -> None:
        """Checked with the first observation."""
