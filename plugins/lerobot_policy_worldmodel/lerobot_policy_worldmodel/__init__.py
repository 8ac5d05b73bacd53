"""Plans of `worldmodel serve` as a LeRobot policy: `--policy.type=worldmodel`."""

from .configuration_worldmodel import WorldmodelConfig
from .modeling_worldmodel import WorldmodelPolicy
from .processor_worldmodel import make_worldmodel_pre_post_processors

__all__ = ["WorldmodelConfig", "WorldmodelPolicy", "make_worldmodel_pre_post_processors"]
