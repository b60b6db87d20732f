"""The same two-phase read with Hugging Face's generate, batch by batch: what the engine's read is timed and checked against.

It is written as the published evaluator works (moral-maps at 01e9026): one order after the other, left-padded batches, exactly T think
tokens, then the suffix and the prefill over the cache of the first phase. At batch size 1 it is exact; in a larger batch the
second phase's positions are shifted by the padding, as the published one's are, so larger batches are for timing alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.measures.forced_choice.ask import Read, row
from evals.measures.forced_choice.instrument import ORDERS, InstrumentRenderer, orders, rotations_of
from shared.models import load_network
from shared.records import Vignette


class HuggingFace:
    """A model folder under transformers. dtype as in the configuration; device by its torch name; pad_id must be no token of any prompt."""

    def __init__(self, folder: Path, dtype: str, pad_id: int, device: str = "cpu"):
        import torch

        self._model = load_network(folder, getattr(torch, dtype), device)
        self._pad, self._device = pad_id, device

    def forced_choice(
        self,
        renderer: InstrumentRenderer,
        vignettes: Sequence[Vignette],
        read: Read,
        tokenizer: Any,
        batch_size: int,
        advance: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]]:
        """A row per vignette, as evals.measures.forced_choice.ask gives them."""
        import torch

        torch.manual_seed(read.seed)
        turned = rotations_of(read.debias, vignettes)
        listings = [orders(read.debias, rotation) for rotation in turned]
        count = ORDERS[read.debias]
        lp = np.empty((len(vignettes), count, read.samples, len(renderer.label_ids)))
        nll = np.empty((len(vignettes), count, read.samples))
        thoughts: list[list[list[list[int]]]] = [[[] for _ in range(count)] for _ in vignettes]
        for order in range(count):
            questions = [
                renderer.question(vignette.text, orders_of_item[order])
                for vignette, orders_of_item in zip(vignettes, listings, strict=True)
            ]
            for begin in range(0, len(questions), batch_size):
                batch = questions[begin : begin + batch_size]
                labels, forced, thought = self._batch(batch, renderer, read)
                rows_of_batch = slice(begin, begin + len(batch))
                by_place = labels.reshape(len(batch), read.samples, -1)
                for index, listed in enumerate(by_place, start=begin):
                    lp[index, order] = listed[..., np.argsort(listings[index][order])]
                nll[rows_of_batch, order] = forced.reshape(len(batch), read.samples)
                for index in range(len(batch)):
                    thoughts[begin + index][order] = thought[index * read.samples : (index + 1) * read.samples]
                advance()
        return [
            row(
                vignette,
                lp[index],
                read,
                float(nll[index].mean()),
                [tokenizer.decode(ids) for order in thoughts[index] for ids in order],
                [len(ids) for order in thoughts[index] for ids in order],
                turned[index],
            )
            for index, vignette in enumerate(vignettes)
        ]

    def _batch(
        self, questions: Sequence[Sequence[int]], renderer: InstrumentRenderer, read: Read
    ) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
        """Label log-probabilities [batch * samples, 7] by listed position, nll of the prefill [batch * samples] and thoughts."""
        import torch

        width = max(map(len, questions))
        padded = [[self._pad] * (width - len(question)) + list(question) for question in questions]
        ids = torch.tensor(padded, device=self._device)
        sampling: dict[str, Any] = {"do_sample": False}
        if read.temperature > 0:
            sampling = {"do_sample": True, "temperature": read.temperature, "top_p": 1.0, "top_k": read.top_k}
        with torch.no_grad():
            first = self._model.generate(
                ids,
                attention_mask=(ids != self._pad).long(),
                max_new_tokens=read.think,
                min_new_tokens=read.think,
                suppress_tokens=renderer.stop_ids,
                num_return_sequences=read.samples,
                pad_token_id=self._pad,
                return_dict_in_generate=True,
                **sampling,
            )
            prompt = first.sequences[:, :-1]  # the last think token never enters the cache
            mask = torch.cat(
                [(ids != self._pad).long().repeat_interleave(read.samples, 0), torch.ones_like(prompt[:, width:])], 1
            )
            prefix, prefill = (
                torch.tensor([part] * len(prompt), device=self._device) for part in (renderer.suffix, renderer.prefill)
            )
            mask = torch.cat([mask, torch.ones_like(prefix)], 1)
            opened = self._model(prefix, attention_mask=mask, past_key_values=first.past_key_values, use_cache=True)
            mask = torch.cat([mask, torch.ones_like(prefill)], 1)
            slot = self._model(prefill, attention_mask=mask, past_key_values=opened.past_key_values, use_cache=False)
            logits = torch.cat([opened.logits[:, -1:], slot.logits], 1).float().log_softmax(-1)
            forced = -logits[:, :-1].gather(2, prefill[..., None]).squeeze(-1).mean(1)
        labels = logits[:, -1, renderer.label_ids]
        return labels.cpu().numpy(), forced.cpu().numpy(), first.sequences[:, width:].tolist()
