"""``[trackers]``: options of where else metrics go. Pure pydantic."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from t2ialign.config import Config


class TensorBoardConfig(Config):
    """``[trackers.tensorboard]``."""

    folder: str | None = Field(
        None,
        description="event files go into a folder of the run's name in it; default: trackers/ in the run directory",
    )


class WandbConfig(Config):
    """``[trackers.wandb]``."""

    project: str = Field("t2ialign", min_length=1, description="project of the run")
    entity: str | None = Field(None, description="user or team; default: your own")
    group: str | None = Field(None, description="group of runs")
    tags: list[str] = Field([], description="tags of the run")
    mode: Literal["online", "offline"] | None = Field(
        None, description="'offline' writes files for `wandb sync`; default: as WANDB_MODE says, or online"
    )


class TrackioConfig(Config):
    """``[trackers.trackio]``."""

    project: str = Field("t2ialign", min_length=1, description="project of the run")
    space_id: str | None = Field(None, description="Space of the hub that shows it; default: this machine alone")


class MlflowConfig(Config):
    """``[trackers.mlflow]``."""

    experiment: str = Field("t2ialign", min_length=1, description="experiment of the run")
    tracking_uri: str | None = Field(
        None, description="server or database; default: as MLFLOW_TRACKING_URI says, or a file in the run directory"
    )


class SwanlabConfig(Config):
    """``[trackers.swanlab]``."""

    project: str = Field("t2ialign", min_length=1, description="project of the run")
    workspace: str | None = Field(None, description="workspace; default: your own")
    mode: Literal["cloud", "local", "offline"] | None = Field(
        None, description="'offline' writes files for `swanlab sync`; default: as SWANLAB_MODE says, or cloud"
    )


class TrackersConfig(Config):
    """``[trackers]``: options of those that ``run.trackers`` names."""

    timeout: float = Field(60.0, gt=0, description="seconds without a sign of life after which a tracker is left out")
    tensorboard: TensorBoardConfig = Field(default_factory=TensorBoardConfig, description="TensorBoard")
    wandb: WandbConfig = Field(default_factory=WandbConfig, description="Weights & Biases")
    trackio: TrackioConfig = Field(default_factory=TrackioConfig, description="Trackio")
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig, description="MLflow")
    swanlab: SwanlabConfig = Field(default_factory=SwanlabConfig, description="SwanLab")
