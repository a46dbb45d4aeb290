"""Interactive views: what the model does, with the reader's own model and text.

Each view is one class (the training dashboard is also a callback); put it at the end of a cell and it
is shown. They work without a network, and where no script may run a picture stands in their place.
"""

from gptcore.widgets.attention import AttentionExplorer
from gptcore.widgets.bertviz import head_view, model_view
from gptcore.widgets.chat import ChatWindow
from gptcore.widgets.labels import PreferenceLabels, drawn_pairs, single_pairs
from gptcore.widgets.mask import MaskInspector
from gptcore.widgets.merges import MergeStepper
from gptcore.widgets.pipeline import PipelineMap
from gptcore.widgets.ppo_lab import PPOLab
from gptcore.widgets.sampling import SamplingLab
from gptcore.widgets.training import TrainingDashboard, held_out_batches

__all__ = [
    "AttentionExplorer",
    "ChatWindow",
    "MaskInspector",
    "MergeStepper",
    "PPOLab",
    "PipelineMap",
    "PreferenceLabels",
    "SamplingLab",
    "TrainingDashboard",
    "drawn_pairs",
    "head_view",
    "held_out_batches",
    "model_view",
    "single_pairs",
]
