"""Prompts and completions as others write them, in the one form that is read here.

Taken: TRL's prompt-only and prompt-completion rows, as text or as messages; OpenAI's fine-tuning rows, messages that end with the
assistant's answer; contents as text or as a list of text parts. Other known shapes are refused with the command that converts them, and
a field that the model should see, or that changes what is trained on, is refused by name. Fields of any other name say something about a
row (a source, a score) and are not read.
"""

from __future__ import annotations

from typing import Any

from shared.strict import Convertible

ROLES = ("system", "user", "assistant")
ALIASES = {"developer": "system"}  # OpenAI's newer name of the same turn
BEYOND = (  # fields of a turn that change what the model sees, and that no template here is given
    "name", "tool_calls", "function_call", "tool_call_id", "tool_plan", "tools", "functions", "audio", "images", "image", "videos", "documents",
    "refusal", "reasoning_content", "reasoning", "thinking", "thought", "context", "input", "instruction", "prefix", "channel", "recipient",
)  # fmt: skip
BESIDE = (  # fields of a row that do
    "tools", "functions", "chat_template_kwargs", "system", "system_prompt", "history", "context", "input", "instruction", "documents", "images",
    "image", "videos", "audio",
)  # fmt: skip
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields beside a completion that would be a part of it
TRAINED_ON = ("weight", "loss", "train", "training")  # fields of a turn by which projects leave it out of the loss
FOREIGN = {  # a field that tells a shape, what it is, and the command that converts it
    "conversations": (
        "ShareGPT's conversations",
        """jq -c '{messages: [.conversations[] | {role: ({"human": "user", "gpt": "assistant"}[.from] // .from), content: .value}]}' FILE > NEW""",
    ),
    "instruction": (
        "Alpaca's instruction",
        """jq -c '{prompt: ([.instruction, .input // .context // ""] | map(select(. != "")) | join("\\n\\n")), completion: (.output // .response)}' FILE > NEW""",
    ),
    "preferred_output": (
        "a preference of OpenAI's",
        "jq -c '{prompt: .input.messages, completion: .preferred_output}' FILE > NEW",
    ),
    "chosen": ("a preference", "jq -c 'if .prompt then {prompt, completion: .chosen} else {messages: .chosen} end' FILE > NEW"),
    "question": (
        "a question",
        """jq -c '{prompt: ([.context // "", .question] | map(select(. != "")) | join("\\n\\n")), completion: .answer}' FILE > NEW""",
    ),
}  # fmt: skip

COLUMNS = (  # all that is looked at of a row; a data set's other columns are not even decoded
    "id", "genre", "domain", "kind", "prompt", "messages", "completion", "label", "version", "text", *BESIDE, *THOUGHTS, *FOREIGN,
)  # fmt: skip
HINTS = {  # what to do with a field that is refused
    **dict.fromkeys(("system", "system_prompt"), "; write it as the first message"),
    **dict.fromkeys(("context", "input", "instruction"), "; write it into the prompt, or leave the field out"),
}
MEANING = {"prompt", "messages", "completion", "label", *BESIDE, *THOUGHTS}  # fields without which a row is another
LAST = "messages have a role and content each, and the last is the user's"

Turns = list[dict[str, str]]


def prompt_of(row: dict[str, Any], kind: str = "prompt") -> dict[str, Any]:
    """The fields of a row, with `prompt` a text or `messages` a conversation that ends with the user's turn.

    An answer at the end of messages is left out. A prompt beside messages must be a part of them, and they are what is asked, as in a row
    to train on. Whole numbers as names (id, genre, domain, kind) become text. Raises ValueError for a row that is no prompt.
    """
    fields = _named(row)
    _in_our_shape(row, kind)
    _nothing_beside(row)
    if fields.get("prompt") is not None and not fields.get("messages"):  # an empty list says nothing
        fields["messages"] = None
    elif isinstance(fields.get("messages"), list):
        messages = turns(fields["messages"], "messages")
        answered = len(messages) > 1 and messages[-1]["role"] == "assistant"
        fields["messages"] = messages[:-1] if answered else messages
        if (prompt := fields.get("prompt")) is not None:
            _refuse_unless_said(prompt, fields["messages"])
            fields["prompt"] = None
    fields = _asked(fields)
    _refuse_blank(fields)
    return fields


def _refuse_blank(fields: dict[str, Any]) -> None:
    """Raise ValueError for a prompt without a word, to which a model says whatever it likes."""
    if isinstance(prompt := fields.get("prompt"), str) and not prompt.strip():
        raise Convertible("the prompt is empty", """jq -c 'select(.prompt | tostring | test("\\\\S"))' FILE > NEW""")
    if isinstance(messages := fields.get("messages"), list) and not messages[-1]["content"].strip():
        raise ValueError("the prompt is empty: the user's last turn has no word")


def pair_of(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row for training: those of `prompt_of`, and `completion`, the text of the assistant's last turn.

    Raises ValueError for a row that is not to be trained on as it stands.
    """
    fields = _named(row)
    _in_our_shape(row, "pair", needed=("prompt", "messages", "completion"))
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
            messages = fields.get("messages")
            start = [{"role": "user", "content": fields["prompt"]}] if messages is None else messages
            fields.update(prompt=None, messages=_asked_by_user([*start, *before], "completion"))
    return fields


def _answered(fields: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A pair whose completion is the last of its messages."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or "chosen" in row:
        _refuse_foreign(row)
        return fields  # which lacks its completion, and is told so
    *asked, last = _ending(messages, "messages")
    if (prompt := fields.pop("prompt", None)) is not None:
        _refuse_unless_said(prompt, asked)
    return {**fields, "messages": _asked_by_user(asked, "messages"), "completion": last["content"]}


def _refuse_unless_said(prompt: Any, asked: Turns) -> None:
    if not _said_in(prompt, asked):
        raise ValueError("prompt is not what the messages ask: leave one of the two out")


def _said_in(prompt: Any, asked: Turns) -> bool:
    """Whether a prompt beside messages is a part of them: a user's turn, or how they begin."""
    if isinstance(prompt, list):
        begin = turns(prompt, "prompt")
        return asked[: len(begin)] == begin
    return any(turn["role"] == "user" and turn["content"] == prompt for turn in asked)


def _ending(value: Any, name: str) -> Turns:
    """Messages that end with an answer to train on."""
    messages = turns(value, name)
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{name}: what is trained on is missing: they must end with the assistant's turn")
    for field in TRAINED_ON:
        if (weight := value[-1].get(field)) is not None and weight != 1:
            raise ValueError(
                f"{name}.{len(value) - 1}: {field} is {weight!r}: the last turn is not to be trained on as the others; leave the row out"
            )
    return messages


def _asked(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields in which a prompt of messages is under `messages`."""
    prompt = fields.get("prompt")
    if isinstance(prompt, list):
        return {**fields, "prompt": None, "messages": _asked_by_user(turns(prompt, "prompt"), "prompt")}
    if isinstance(fields.get("messages"), list):
        return {**fields, "messages": _asked_by_user(turns(fields["messages"], "messages"), "messages")}
    return fields


def _asked_by_user(messages: Turns, field: str) -> Turns:
    if not messages or messages[-1]["role"] != "user":
        raise ValueError(f"{field}: {LAST}")
    return messages


def turns(messages: list[Any], field: str) -> Turns:
    """Role and content of every message of a field, contents joined where they are in parts. Raises ValueError for what no template can
    render."""
    if not messages:
        raise ValueError(f"{field}: {LAST}")
    return [_turn(message, f"{field}.{index}") for index, message in enumerate(messages)]


def _turn(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise ValueError(f"{place}: {LAST}")
    if beyond := [name for name in BEYOND if message.get(name)]:
        raise ValueError(f"{place}: {beyond[0]} would not be seen: only role and content are read")
    role = message["role"]
    role = ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"{place}: role {message['role']!r} is none of {', '.join(ROLES)}")
    return {"role": role, "content": _content(message["content"], place)}


def _content(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        if strange := [p for p in content if not isinstance(p, dict) or p.get("type") != "text" or not isinstance(p.get("text"), str)]:  # fmt: skip
            kind = strange[0].get("type") if isinstance(strange[0], dict) else type(strange[0]).__name__
            raise ValueError(f"{place}.content: a part is {kind!r}, and only text is read")
        return "".join(part["text"] for part in content)
    raise ValueError(f"{place}.content is {type(content).__name__}, not text or a list of text parts")


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """The row, with names that are whole numbers as text: a data set's ids often are."""
    whole = {name: str(value) for name in ("id", "genre", "domain", "kind") if type(value := row.get(name)) is int}
    return {**row, **whole}


def _in_our_shape(row: dict[str, Any], kind: str, needed: tuple[str, ...] = ("prompt", "messages")) -> None:
    """Raise ValueError for a row with no field that is read."""
    if all(row.get(name) is None for name in needed):
        _refuse_foreign(row)
        if row.get("text") is not None:
            raise ValueError("text does not say where a prompt ends: name it prompt, and what is trained on completion")
        raise ValueError(f"a {kind} row has either prompt or messages")


def _nothing_beside(row: dict[str, Any], also: tuple[str, ...] = ()) -> None:
    for name in row:
        if name not in MEANING and row[name] is not None and (meant := plain_field(name)) in MEANING:
            raise ValueError(f"field {name!r} is not read: name it {meant!r}")
    if beside := [name for name in (*BESIDE, *also) if row.get(name)]:
        raise ValueError(
            f"{beside[0]} would not be seen: only prompt, messages and completion are read{HINTS.get(beside[0], '')}"
        )


def plain_field(name: str) -> str:
    """A field's name without what a spreadsheet or a hand adds to it: blanks around it, and capitals."""
    return name.strip().lower()


def _refuse_foreign(row: dict[str, Any]) -> None:
    for name, (kind, command) in FOREIGN.items():
        if row.get(name) is not None:
            raise Convertible(f"{kind} ({name}) is not read", command)
