"""Prompts and completions as others write them, in the one form that is read here.

Taken: TRL's prompt-only and prompt-completion rows, as text or as messages; OpenAI's fine-tuning rows, messages that end with the
assistant's answer; contents as text or as a list of text parts. Other known shapes are refused with the command that converts them.
"""

from __future__ import annotations

from typing import Any

from shared.strict import Convertible

ROLES = ("system", "user", "assistant")
ALIASES = {"developer": "system"}  # OpenAI's newer name of the same turn
BEYOND = ("tool_calls", "function_call", "tool_call_id", "audio", "refusal", "reasoning_content", "reasoning", "thinking", "tool_plan", "images", "image", "videos", "documents")  # fmt: skip
BESIDE = ("tools", "functions", "chat_template_kwargs", "system", "system_prompt", "history", "documents", "images", "image", "videos", "audio")  # fmt: skip
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields beside a completion that would be a part of it
TRAINED_ON = ("weight", "loss", "train", "training")  # fields of a turn by which projects leave it out of the loss
FOREIGN = {  # a field that tells a shape, what it is, and the command that converts it
    "conversations": (
        "ShareGPT's conversations",
        """jq -c '{messages: [.conversations[] | {role: ({"human": "user", "gpt": "assistant"}[.from] // .from), content: .value}]}' FILE > NEW""",
    ),
    "instruction": (
        "Alpaca's instruction",
        """jq -c '{prompt: ([.instruction, .input // ""] | map(select(. != "")) | join("\\n\\n")), completion: .output}' FILE > NEW""",
    ),
    "preferred_output": (
        "a preference of OpenAI's",
        "jq -c '{prompt: .input.messages, completion: .preferred_output}' FILE > NEW",
    ),
    "chosen": ("a preference", "jq -c 'if .prompt then {prompt, completion: .chosen} else {messages: .chosen} end' FILE > NEW"),
    "question": ("a question", "jq -c '{prompt: .question, completion: .answer}' FILE > NEW"),
}  # fmt: skip

Turns = list[dict[str, str]]


def prompt_of(row: dict[str, Any], kind: str = "prompt") -> dict[str, Any]:
    """The fields of a row, with `prompt` a text or `messages` a conversation that ends with the user's turn.

    prompt goes before messages, which then hold the answer too. An answer at the end of messages is left out. Whole numbers as names
    (id, genre, domain, kind) become text. Raises ValueError for a row that is no prompt.
    """
    fields = _named(row)
    _nothing_beside(row)
    if fields.get("prompt") is not None:
        fields["messages"] = None
    elif isinstance(fields.get("messages"), list):
        messages = turns(fields["messages"])
        answered = len(messages) > 1 and messages[-1]["role"] == "assistant"
        fields["messages"] = messages[:-1] if answered else messages
    elif fields.get("messages") is None:
        _refuse_foreign(row)
        raise ValueError(f"a {kind} row has either prompt or messages")
    return _asked(fields)


def pair_of(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row for training: those of `prompt_of`, and `completion`, the text of the assistant's last turn.

    Raises ValueError for a row that is not to be trained on as it stands.
    """
    fields = _named(row)
    _nothing_beside(row, THOUGHTS)
    if (label := row.get("label")) is not None and label != 1:
        if label != 0:
            raise ValueError(
                f"label is {label!r}: only completions labelled true are trained on; leave out what is no such label"
            )
        raise Convertible(
            "label is false: a completion that is not wanted",
            "jq -c 'select(.label == true or .label == 1 or .label == null)' FILE > NEW",
        )
    if (completion := fields.get("completion")) is None:
        return _answered(fields, row)
    if (fields.get("prompt") is None) == (fields.get("messages") is None):
        raise ValueError("a pair row has either prompt or messages")
    fields = _asked(fields)
    if isinstance(completion, list):
        *before, last = _ending(completion, "completion")
        fields["completion"] = last["content"]
        if before:
            asked = fields.get("messages")
            start = [{"role": "user", "content": fields["prompt"]}] if asked is None else asked
            fields.update(prompt=None, messages=_asked_by_user([*start, *before]))
    return fields


def _answered(fields: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A pair whose completion is the last of its messages."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or "chosen" in row:
        _refuse_foreign(row)
        return fields  # which lacks its completion, and is told so
    *asked, last = _ending(messages, "messages")
    fields.pop("prompt", None)
    return {**fields, "messages": _asked_by_user(asked), "completion": last["content"]}


def _ending(value: Any, name: str) -> Turns:
    """Messages that end with an answer to train on."""
    found = turns(value)
    if found[-1]["role"] != "assistant":
        raise ValueError(f"a row without completion has {name} that end with the assistant's turn")
    for name in TRAINED_ON:
        if (weight := value[-1].get(name)) is not None and weight != 1:
            raise ValueError(
                f"{name} is {weight!r}: the last turn is not to be trained on as the others; leave the row out"
            )
    return found


def _asked(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields in which a prompt of messages is under `messages`."""
    asked = fields.get("prompt")
    if isinstance(asked, list):
        return {**fields, "prompt": None, "messages": _asked_by_user(turns(asked))}
    if isinstance(fields.get("messages"), list):
        return {**fields, "messages": _asked_by_user(turns(fields["messages"]))}
    return fields


def _asked_by_user(messages: Turns) -> Turns:
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("messages have a role and content each, and the last is the user's")
    return messages


def turns(messages: list[Any]) -> Turns:
    """Role and content of every message, contents joined where they are in parts. Raises ValueError for what no template can render."""
    if not messages:
        raise ValueError("messages have a role and content each, and the last is the user's")
    return [_turn(message, index) for index, message in enumerate(messages)]


def _turn(message: Any, index: int) -> dict[str, str]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise ValueError("messages have a role and content each, and the last is the user's")
    if beyond := [name for name in BEYOND if message.get(name)]:
        raise ValueError(f"messages.{index}: {beyond[0]} would not be seen: only role and content are read")
    role = message["role"]
    role = ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"messages.{index}: role {message['role']!r} is none of {', '.join(ROLES)}")
    return {"role": role, "content": _content(message["content"], index)}


def _content(content: Any, index: int) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        if strange := [p for p in content if not isinstance(p, dict) or p.get("type") != "text" or not isinstance(p.get("text"), str)]:  # fmt: skip
            kind = strange[0].get("type") if isinstance(strange[0], dict) else type(strange[0]).__name__
            raise ValueError(f"messages.{index}.content: a part is {kind!r}, and only text is read")
        return "".join(part["text"] for part in content)
    raise ValueError(f"messages.{index}.content is {type(content).__name__}, not text or a list of text parts")


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """The row, with names that are whole numbers as text: a data set's ids often are."""
    whole = {name: str(value) for name in ("id", "genre", "domain", "kind") if type(value := row.get(name)) is int}
    return {**row, **whole}


def _nothing_beside(row: dict[str, Any], also: tuple[str, ...] = ()) -> None:
    if beside := [name for name in (*BESIDE, *also) if row.get(name)]:
        hint = "; write it as the first message" if beside[0].startswith("system") else ""
        raise ValueError(f"{beside[0]} would not be seen: only prompt, messages and completion are read{hint}")


def _refuse_foreign(row: dict[str, Any]) -> None:
    for name, (kind, command) in FOREIGN.items():
        if row.get(name) is not None:
            raise Convertible(f"{kind} ({name}) is not read", command)
