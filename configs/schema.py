"""What every entry point can be told. A misspelt or mistyped setting is refused by these classes.

`encoder`, `objective`, `predictor` and `planner` are groups: one YAML file per choice, naming a
class and all its arguments. So is `robot`, whose files name an adapter of `worldmodel.robots`.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ScheduleConfig:
    """Learning rate over a run, see `worldmodel.training.Schedule`."""

    name: str = "cosine"
    peak: float = 1e-3
    start: float = 0.0
    final: float = 0.0
    steps: int = 1000
    warmup_steps: int = 100
    decay_steps: int = 0


@dataclass
class CollectConfig:
    """Records scripted episodes in simulation."""

    out: str = "datasets/reach"  # episode store; an interrupted collection goes on where it was
    tasks: Any = None  # name: share of the episodes; null is {reach: 1}
    episodes: int = 100
    steps: int = 25  # actions per episode
    # name: share of the episodes; null is {scripted: 0.25, noisy: 0.45, explore: 0.3}
    behaviours: Any = None
    variations: Any = None  # none, mild, strong or factors: share of the episodes; null is none
    seed: int = 0
    image_size: int = 128
    cameras: list[str] = field(default_factory=lambda: ["exterior"])
    backends: list[str] = field(default_factory=lambda: ["auto"])  # taken in turn: auto, gl, ray
    workers: int | None = None  # processes; null is one a core
    start_index: int = 0  # number of the first episode, so that machines can share the work


@dataclass
class DataConfig:
    """Recordings to read, of any format."""

    data: str = "datasets/reach"
    format: str | None = None  # null finds it from what lies there; docs/data.md lists them
    mapping: str | None = None  # YAML that says which column means what; null: as the format says
    hz: float | None = None  # control rate [Hz], over what format or mapping declare


@dataclass
class InspectConfig(DataConfig):
    """Says what recordings hold, draws them, and checks them."""

    check: bool = False  # read every frame and list what is wrong
    run: str | None = None  # folder for pictures and page; null is a new one under runs/


@dataclass
class ConvertConfig(DataConfig):
    """Writes recordings of any format as another format."""

    data: str = MISSING
    out: str = MISSING  # a conversion that was stopped goes on where it was
    to: str = "zarr_store"  # zarr_store, lerobot or rlds
    image_size: list[int] | None = None  # height, width; null keeps them as they are
    cameras: list[str] | None = None  # null is all


@dataclass
class TranscodeConfig:
    """Re-encodes every video of a folder as H.264 and copies the rest."""

    data: str = MISSING
    out: str = MISSING
    height: int | None = None  # null keeps the size
    width: int | None = None
    hz: float | None = None  # true rate of the frames, for the header; null keeps what it says
    gop: int = 15  # frames from one keyframe to the next: what a random window must decode
    crf: int = 18  # quality; lower is better and larger
    workers: int = 1


@dataclass
class LatentConfig(DataConfig):
    """Recordings, and what of them a frozen encoder is shown."""

    # A folder written by `worldmodel pretrain`, "default" for the shipped one, or a published
    # encoder: its name (see `worldmodel models`) or its file.
    encoder_checkpoint: str = MISSING
    encoder_blocks: int | None = None  # how many of its blocks are used; 0 is its stem alone
    cache: str = "datasets/latents"
    camera: str = "exterior"
    model_hz: float | None = None  # rows a second; null takes every row of the recordings
    crop: str = "none"  # frames of another size: none refuses, square, squash, eval
    merge: int = 2  # side of the square of tokens joined into one latent token
    pool: int = 1  # side of the square of merged tokens averaged into one
    latent_dtype: str = "float16"  # float16, or int8 with a scale per token: half the size
    encode_precision: str = "float32"  # of the encoder; auto: bfloat16 where the machine is fast
    workers: int = 1  # processes that encode
    max_quarantined: float = 0.1  # share of unfit episodes above which nothing is trained
    confirm_above_gib: float = 50.0  # size of the latents above which it asks for confirmed=true
    confirmed: bool = False
    device: str = "auto"  # auto, cpu or cuda


@dataclass
class EncodeConfig(LatentConfig):
    """Caches the latents of recordings."""

    rank: int | None = None  # number of this process among `world`; null asks torchrun or Slurm
    world: int | None = None
    executor: str = "local"  # of the workers; ray: on a cluster that sees the same files
    cpus: float = 1.0  # that Ray sets aside for a worker
    gpus: float = 0.0
    address: str | None = None  # Ray cluster; null is RAY_ADDRESS's, or else this machine
    verify: int = 0  # encode so many episodes again and compare, instead of encoding


@dataclass
class CollapseConfig:
    """When a collapsed pretraining is stopped, see `worldmodel.collapse.CollapseLimits`."""

    min_effective_rank: float = 2.0  # of the tokens, at least 1; 1 never stops a run
    min_std: float = 0.02  # of a feature over pictures; 0 never stops a run
    max_cosine: float = 0.99  # mean, of pairs of tokens; 1 never stops a run
    patience: int = 3  # measurements in a row beyond a limit
    first_step: int = 100  # nothing is judged before it


@dataclass
class PretrainConfig(DataConfig):
    """Trains an encoder by an objective of self-supervision, by reading the state, or both."""

    encoder: Any = MISSING  # group: architecture
    objective: Any = MISSING  # group: what the encoder learns from
    run: str | None = None  # null is a new folder under runs/; name an old one to go on with it
    finetune: str | None = None  # encoder to go on from, in place of the group: a folder or a name
    camera: str = "exterior"
    model_hz: float | None = None  # rows a second; null takes every row of the recordings
    image_size: int | None = None  # pixels; null is the size of the recordings
    crop: str = "none"  # frames of another size: none refuses, square, squash, eval
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch_size: int = 64
    weight_decay: float = 0.04
    frames_in_memory: int | None = None  # about how many; null keeps all (49 kB each of 128 pixels)
    objective_weight: float = 1.0  # of the objective; 0 leaves it out
    state_weight: float = 0.0  # of reading the end-effector's state from a frame, beside it
    state_batch_size: int | None = None  # frames it is read from, a step; null: as batch_size
    merge: int = 2  # as in planning: side of the square of tokens joined into one
    precision: str = "auto"  # auto is bfloat16 on CUDA and on a CPU with AMX, else float32
    validation_fraction: float = 0.05
    seed: int = 0
    device: str = "auto"
    threads: int | None = None  # of torch on the CPU; null is torch's own choice
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    accumulate: int = 1  # parts a batch is computed in: less memory; see docs/objectives.md
    activation_checkpointing: bool = False  # the same run with much less memory, a third slower
    compile: bool = False  # torch.compile of the encoder's blocks
    log_every: int = 10  # collapse is measured as often
    save_every: int = 100
    keep_last: int = 2  # states to go on from
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # tensorboard, wandb


@dataclass
class TrainConfig(LatentConfig):
    """Trains an action-conditioned predictor on the latents of a frozen encoder."""

    predictor: Any = MISSING  # group: architecture
    run: str | None = None  # null is a new folder under runs/; name an old one to go on with it
    finetune: str | None = None  # world model to go on from: its predictor, in place of the group
    lora_rank: int | None = None  # low-rank changes of it only; null trains all of it
    # Another name is that of an arm that speaks in the joints of its recordings; docs/training.md.
    embodiment: str = "end_effector"
    window: int = 3  # frames
    strides: list[int] = field(default_factory=lambda: [1])  # control steps between frames
    rollout_steps: int = 2
    distance: str = "l2"  # of predictions from what was seen: l1 as published, or l2
    legacy_rollout: bool = False  # rollout loss with the first release's mistake; to reproduce it
    standardise: bool = True  # latents, poses and actions; false: as published, as they are
    state_weight: float = 1.0  # of the state head, whose reading of a goal proposes plans; 0: none
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch_size: int = 64
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0  # of gradients; null clips none
    precision: str = "auto"  # auto is bfloat16 on CUDA and on a CPU with AMX, else float32
    accumulate: int = 1  # parts a batch is computed in: the same run with less memory
    activation_checkpointing: bool = False  # the same run with much less memory, a third slower
    compile: bool = False  # torch.compile of the transformer blocks
    fsdp: bool = False  # under torchrun: shard weights and optimiser over the processes
    validation_fraction: float = 0.05
    seed: int = 0
    threads: int | None = None  # of torch on the CPU; null is torch's own choice
    log_every: int = 10
    validate_every: int = 100
    # Steps between the robot-free measures of docs/validation.md, taken on a few held-out windows,
    # and once more at the end; null takes none.
    measure_every: int | None = 500
    measured_windows: int = 64
    measured_searches: int = 16  # of them, searched for the lowest energy, which costs most
    dtype: str = "float32"  # of the stored model: float32, or float16 for half the size
    save_every: int = 100
    keep_last: int = 2  # states to go on from; the best weights are kept beside them
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # tensorboard, wandb
    compare_with: str | None = None  # world model that the end compares with; null: earlier ones


@dataclass
class PlanningConfig:
    """What `plan`, `evaluate` and `demo` share."""

    planner: Any = MISSING  # group: search and how the controller uses it
    variation: str = "none"  # none, mild, strong, or factors such as light:strong+camera_pose
    checkpoint: str | None = None  # world-model folder, or a published one; null is the shipped
    camera: str = "exterior"
    backend: str = "auto"  # renderer: auto, gl or ray
    steps: int | None = None  # control steps per episode; null is the task's own number
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None  # of torch; null is torch's own choice
    run: str | None = None  # null is a new folder under runs/


@dataclass
class PlanConfig(PlanningConfig):
    """Plans to one goal image and shows every step."""

    task: str = "reach"
    goal: str | None = None  # image file to reach; null takes the goal of the episode's seed


@dataclass
class MeasureConfig(PlanningConfig):
    """What `evaluate` and `demo` share."""

    episodes: int = 50
    num_envs: int = 8  # arms planned for in one batch
    workers: int | None = None  # processes that simulate; null is one a core
    latency_episodes: int = 2  # run with one arm alone; planning times are theirs
    oracle_episodes: int = 10  # of the search in the true simulator, which is slow
    videos: int = 8  # how many episodes are drawn (failures are drawn first)
    baselines: bool = True  # false: the planner alone, as sweeps compare it with another planner


@dataclass
class EvaluateConfig(MeasureConfig):
    """Measures success over episodes, beside policies that know more or less."""

    task: str = "reach"


@dataclass
class DemoConfig(MeasureConfig):
    """Measures a few episodes of some tasks, to watch."""

    tasks: list[str] = field(default_factory=lambda: ["reach", "pick_and_place"])


@dataclass
class ModelsConfig:
    """Lists published models, downloads one, or says what is in a file."""

    action: str = "list"  # list, download or verify
    source: str | None = None  # name of a published model, or a path
    against: str | None = None  # verify: the file its encoder should come from


@dataclass
class LandscapeConfig:
    """Draws the energy of small moves around a frame, given the frame a moment later."""

    pair: str | None = None  # .npz with two frames and poses
    data: str | None = None  # recordings instead; without either, a simulated pair
    format: str | None = None
    mapping: str | None = None
    hz: float | None = None
    episode: int = 0  # of the recordings
    rows: list[int] = field(default_factory=lambda: [0, 1])  # of the episode
    move: list[float] = field(default_factory=lambda: [0.05, 0.04, -0.03])  # [m], simulated
    seed: int = 0
    backend: str = "auto"  # renderer: auto, gl or ray
    camera: str = "exterior"
    checkpoint: str | None = None  # world-model folder; null is the shipped model
    limit: float = 0.075  # [m] along each axis
    points: int = 5  # along each axis
    device: str = "cpu"
    threads: int | None = None
    run: str | None = None  # null is a new folder under runs/


@dataclass
class SurpriseConfig(DataConfig):
    """Scores recordings by what the model did not expect."""

    data: str | None = None  # recordings to score
    calibrate: bool = False  # instead write what is normal: over clean recordings, held out
    calibration: str | None = None  # null is calibration.json beside the model
    test: str | None = None  # physics: pairs of possible and impossible simulated episodes
    pairs: int = 50  # of each kind
    steps: int = 16  # of their episodes
    task: str = "reach"
    behaviour: str = "noisy"
    camera: str = "exterior"
    backend: str = "auto"  # renderer: auto, gl or ray
    seed: int = 0
    pictures: int = 4  # how many episodes are drawn, the most surprising first
    checkpoint: str | None = None  # world-model folder; null is the shipped one that watches
    device: str = "cpu"
    threads: int | None = None
    run: str | None = None  # null is a new folder under runs/


@dataclass
class ValidateConfig(DataConfig):
    """Says without a robot whether a model will plan: on held-out recordings, or fresh ones."""

    data: str | None = None  # held-out recordings; null simulates fresh ones
    camera: str = "exterior"
    model_hz: float | None = None  # of a model whose checkpoint states no rate
    # Who speaks in the recordings: end_effector, or a name that the model was trained with
    # (train embodiment=NAME); limits are then of its joints [rad] and gripper.
    embodiment: str = "end_effector"
    episodes: int = 32  # recordings read at most, or simulated
    steps: int = 30  # of a simulated one
    windows: int = 256  # at most; errors and ranks are of all of them
    horizon: int = 8  # steps imagined from one frame
    candidates: int = 16  # actions that are ranked, the true one included
    searches: int = 64  # windows whose energy is searched
    samples: int = 64  # plans per iteration of a search
    iterations: int = 6
    plan_steps: int = 3  # of the open-loop plans
    # Half the width of the box that is searched, seven numbers [m, rad, gripper]; null: the moves
    # of the recordings and a quarter more.
    limits: list[float] | None = None
    distance: str = "l2"  # of latents: l1 as published, or l2
    # File of the camera rotation; null is camera_rotation.json beside the checkpoint, or in the run
    # folder for the shipped model and for simulated recordings.
    correction: str | None = None
    backend: str = "auto"  # renderer of simulated ones: auto, gl or ray
    precision: str = "auto"  # of the model: bfloat16 where the machine is fast at it, else float32
    seed: int = 0
    checkpoint: str | None = None  # world-model folder, or a published one; null is the shipped
    device: str = "cpu"
    threads: int | None = None  # of torch; null is torch's own choice
    run: str | None = None  # null is a new folder under runs/


@dataclass
class ExecutorConfig:
    """Where the calls of `benchmark`, `sweep` and `recipe` are run."""

    executor: str = (
        "local"  # local, or ray: many machines that see the same files at the same paths
    )
    workers: int = 1  # calls at once (local)
    minutes: float | None = None  # then stop, with status 3; the same command goes on
    cpus: float = 1.0  # that Ray sets aside for a call
    gpus: float = 0.0
    address: str | None = None  # Ray cluster; null is RAY_ADDRESS's, or else this machine


@dataclass
class BenchmarkConfig(ExecutorConfig):
    """Evaluates every task and variation, and holds the numbers to the targets."""

    checkpoint: str | None = None  # world-model folder; null is the shipped model
    tasks: list[str] = field(
        default_factory=lambda: ["reach", "grasp", "lift", "push", "pick_and_place"]
    )
    variations: list[str] = field(default_factory=lambda: ["none", "mild"])
    episodes: int = 100
    seed: int = 0
    evaluate: Any = None  # its other settings, such as {device: cuda}
    run: str = "runs/benchmark"  # evaluations that are done are not made again


@dataclass
class SweepConfig(ExecutorConfig):
    """Makes rows that change one thing each, and compares them with a base on paired seeds."""

    experiments: list[str] = field(default_factory=lambda: ["*"])  # such as [tokens/*, energy/l1]
    folder: str | None = None  # of base.yaml and the rows; null is configs/experiment/ablation
    checkpoint: str | None = None  # measure this model; for rows that change planning only
    knobs: Any = None  # for all rows, over those of base.yaml: {episodes: 20}
    run: str = "runs/ablation"  # stages that are done are not made again


@dataclass
class RecipeConfig(ExecutorConfig):
    """Makes weights, from simulation to success rates; name one with +experiment=recipe_cpu."""

    stages: Any = MISSING  # verbs and their settings in order, see worldmodel.pipeline
    stage: str | None = None  # run this one only
    run: str = "runs/recipe"  # stages that are done are not made again


@dataclass
class ServeConfig:
    """Answers robot-side scripts with plans to the goal images that their prompts name.

    With `robot` it serves that robot instead, to `worldmodel drive robot=remote` elsewhere.
    """

    robot: Any = None  # group: the robot to serve; null serves plans
    record: str | None = None  # folder of the robot's flight recorder; null records nothing
    insecure_lan: bool = False  # a physical arm without TLS, on a network that is yours alone
    make_certificate: bool = False  # write tls_certificate and tls_key first
    planner: Any = MISSING  # group: search and how the controller uses it
    # Box that the tool must not leave [m]: [[x, y, z], [x, y, z]] in the robot's base frame.
    workspace: Any = None  # needed for plans; a robot has its own
    goals: str = "goals"  # folder of <prompt>.png; of several cameras <prompt>.<camera>.png of each
    camera: str = "exterior"  # of a request: exterior, wrist, or both joined by +, as trained
    checkpoint: str | None = None  # world-model folder, or a published one; null is the shipped
    crop: str | None = None  # how pictures become the model's: square, squash; null: as trained
    host: str = "127.0.0.1"  # an address that other machines can reach needs a token
    port: int | None = None  # 0 takes any that is free; null: 8000 for plans, 8001 for a robot
    token_file: str | None = None  # null: the variable WORLDMODEL_TOKEN, or no token
    tls_certificate: str | None = None  # PEM files, both or neither
    tls_key: str | None = None
    max_connections: int = 4
    action_space: str = "joint_velocity"  # of RoboArena's rows; openpi's are always that
    roboarena_reply: str = "map"  # {actions: rows} for its evaluator, array for its self-test
    # Joints [rad] whose elbow the model's recordings show, turned to on the way; null leaves it.
    posture: Any = None
    rows: int = 8  # planned at once, 1/15 s each; then the arm waits for the next plan
    speed: float = 0.2  # of the tool [m/s]
    turn_speed: float = 0.4  # of the tool [rad/s]
    joint_speed: float = 1.0  # of every joint [rad/s]
    tool_length: float = 0.149  # from the flange to the model's tool centre point [m]
    tool_yaw: float = -0.7853981633974483  # of the tool about the flange's axis [rad]
    device: str = "cpu"
    threads: int | None = None  # of torch; null is torch's own choice


@dataclass
class DriveConfig:
    """Drives an arm to a goal image; takes goal images, calibrates, and stops another drive."""

    action: str = "run"  # run, goal capture, calibrate, or stop
    what: str | None = None  # of `goal`: capture
    planner: Any = MISSING  # group: search and how the controller uses it
    robot: Any = MISSING
    # Image to reach, or to write: NAME (goals/NAME.png) or a path; of several cameras NAME
    # (goals/NAME.CAMERA.png of each), or one path of each, joined by +.
    goal: str | None = None
    camera: str = "exterior"
    checkpoint: str | None = None  # world-model folder, or a published one; null is the shipped
    calibration: str | None = None  # what drive calibrate wrote; null: the model has our axes
    crop: str | None = None  # how pictures become the model's: square, squash; null: as trained
    dry_run: bool = False  # everything but the sending
    yes: bool = False  # do not ask before the first motion; simulated robots only
    operator: str | None = None  # name for the record; null is the login name
    speed: float = 0.1  # of the tool [m/s]
    turn_speed: float = 0.2  # of the tool [rad/s]
    command_hz: float = 20.0
    seconds: float = 30.0  # then it ends, there or not
    settle_plans: int = 3  # plans in a row that say "there"
    max_age_s: float = 0.2  # of pictures and states that are acted on
    plan_max_age_s: float = 1.0  # of a plan's picture; then the plan expires and the arm holds
    compensate: bool = True  # plan from where the arm will be when the plan is ready
    latency_s: float | None = None  # of plans where the robot's clock is simulated; null is none
    settle_s: float = 0.5  # before the first picture
    stop_port: int | None = 0  # second socket that stops, this machine only; 0: a free one
    move: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # [m], before a capture
    moves: int = 10  # of a calibration
    move_size: float = 0.05  # [m] from where it begins
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None  # of torch; null is torch's own choice
    run: str | None = None  # null is a new folder under runs/


@dataclass
class ReplayConfig:
    """Makes a recorded decision of a drive again and says why it was made."""

    recording: str = MISSING  # folder of a drive, of its recording, or of one trip
    step: int = -1  # which plan of the recording, from 0; negative counts from the last
    trip: int | None = None  # which trip, from 1; null is the last thing that was kept
    checkpoint: str | None = None  # where the model is now; null is where it was
    out: str | None = None  # picture to write; null is replay-<step>.png


STORE = ConfigStore.instance()
for _name, _schema in {
    "collect": CollectConfig,
    "inspect": InspectConfig,
    "convert": ConvertConfig,
    "transcode": TranscodeConfig,
    "encode": EncodeConfig,
    "pretrain": PretrainConfig,
    "train": TrainConfig,
    "plan": PlanConfig,
    "landscape": LandscapeConfig,
    "surprise": SurpriseConfig,
    "validate": ValidateConfig,
    "benchmark": BenchmarkConfig,
    "sweep": SweepConfig,
    "recipe": RecipeConfig,
    "models": ModelsConfig,
    "evaluate": EvaluateConfig,
    "demo": DemoConfig,
    "serve": ServeConfig,
    "drive": DriveConfig,
    "replay": ReplayConfig,
}.items():
    STORE.store(name=f"{_name}_schema", node=_schema)
