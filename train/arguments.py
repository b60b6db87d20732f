"""transformers' own settings for a training, and its reporters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks

from shared.divergences import DIVERGENCES
from shared.errors import SteerHealError
from shared.schema import Config
from shared.trackers import name_projects, project


def training_arguments(config: Config, work: Path, evaluate: bool) -> TrainingArguments:
    """Cosine with warm-up, AdamW with betas (0.9, 0.95), gradients clipped at norm 1.

    Args:
        config: of the run.
        work: folder of checkpoints.
        evaluate: whether there are held-out rows to evaluate on.
    """
    train = config.train
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        num_train_epochs=train.epochs,
        max_steps=train.steps or -1,  # which goes before the epochs
        learning_rate=train.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=train.warmup,
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=train.weight_decay if DIVERGENCES[train.divergence].weight_decay else 0.0,
        max_grad_norm=1.0,
        seed=config.seed,
        data_seed=config.seed,
        eval_strategy="epoch" if evaluate else "no",
        logging_steps=train.logging_steps,
        save_strategy="steps" if train.save_steps else "no",
        save_steps=max(train.save_steps, 1),
        save_total_limit=2,
        report_to="none",
        run_name=_run_name(work),
        project=project("trackio"),
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        fp16=False,
    )


def _run_name(work: Path) -> str:
    """How trackers call a training: by its run and round, or by the folder it is in."""
    folder = work.resolve().parent
    return f"{folder.parent.parent.name}-round-{int(folder.name)}" if folder.parent.name == "rounds" else folder.name


def reporters(names: Sequence[str], tensorboard: Path) -> list[TrainerCallback]:
    """Transformers' own reporters, by the names it knows them; tensorboard: the folder of TensorBoard's."""
    name_projects()
    try:
        callbacks = [kind() for kind in get_reporting_integration_callbacks(list(names))]
    except (ImportError, RuntimeError, ValueError) as error:
        raise SteerHealError(
            "a tracker of train.report_to cannot be used",
            given=f"train.report_to = {list(names)}: {error}",
            expected="trackers that transformers knows, with their packages installed",
            next='--set "train.report_to=[]" (SET of make), or install the package that the message names',
        ) from None
    for callback in callbacks:  # its own default is a folder that is removed with the unfinished round
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(tensorboard)
    return callbacks
