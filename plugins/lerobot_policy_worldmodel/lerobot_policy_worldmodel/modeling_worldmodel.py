"""A planner server as a policy. It has no weights; it cannot be trained."""

from collections import deque
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from .configuration_worldmodel import WorldmodelConfig
from .mapping import actions_of, request_of
from .planner_client import PlannerClient


class WorldmodelPolicy(PreTrainedPolicy):
    """Asks for a plan, carries out its rows one by one, and asks again.

    Rows are meant for 15 a second: give lerobot-rollout `--fps=15`.
    """

    config_class = WorldmodelConfig
    name = "worldmodel"

    def __init__(self, config: WorldmodelConfig):
        """Connects to nothing yet."""
        super().__init__(config)
        self._client = PlannerClient(
            config.url, token_file=config.token_file, timeout_s=config.timeout_s
        )
        self._rows: deque[Tensor] = deque()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path | None,
        *,
        config: WorldmodelConfig | None = None,
        revision: str | None = None,
    ) -> "WorldmodelPolicy":
        """Returns the policy of a configuration; there are no weights to load."""
        del revision
        if config is None:
            if pretrained_name_or_path is None:
                raise ValueError("give --policy.type=worldmodel or a folder with a config.json")
            config = WorldmodelConfig.from_pretrained(pretrained_name_or_path)
        return cls(config).eval()

    def reset(self) -> None:
        """Forgets the rest of the plan, and that the gripper was commanded: it asks anew."""
        self._rows.clear()
        self._client.close()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any]) -> Tensor:
        """Returns the rows (1, N, 8) of a plan from one observation: batches have one element."""
        state, image = batch["observation.state"], self._image(batch)
        if len(state) != 1:
            raise ValueError(f"one robot is planned for at a time, got a batch of {len(state)}")
        task = batch["task"]
        prompt = task if isinstance(task, str) else task[0]
        request = request_of(state[0].cpu().numpy(), image[0].cpu().numpy(), prompt)
        return torch.from_numpy(actions_of(self._client.ask(request)))[None]

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any]) -> Tensor:
        """Returns the next row (1, 8)."""
        if not self._rows:
            self._rows.extend(self.predict_action_chunk(batch)[0])
        return self._rows.popleft()[None]

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict | None]:
        """Raises NotImplementedError: train the world model with worldmodel instead."""
        raise NotImplementedError("a planner server is not trained by LeRobot")

    def get_optim_params(self) -> dict:
        """Raises NotImplementedError: train the world model with worldmodel instead."""
        raise NotImplementedError("a planner server is not trained by LeRobot")

    def _image(self, batch: dict[str, Any]) -> Tensor:
        key = f"observation.images.{self.config.camera}"
        if key not in batch:
            cameras = [name.rpartition(".")[2] for name in batch if ".images." in name]
            raise ValueError(f"no camera {self.config.camera!r}; the robot has: {cameras}")
        return batch[key]
