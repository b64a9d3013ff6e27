"""docs/PROTOCOL.md agrees with the code: messages with tags and fields, endings, reasons, limits, the example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import router
import shm
import workers
from shm import client, control, layout, limits, worker
from shm.client import Request, Submit
from shm.endings import FIRST_REFUSAL, Ending, Reason
from shm.layout import DTYPES, Tensor
from tests.contract.messages import CODECS, SUBMIT, encoded

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "PROTOCOL.md").read_text()
POWERS = {2**63 - 1: "2^63-1", 2**63: "2^63", 2**40: "2^40", 2**31: "2^31", 2**30: "2^30"}

Row = dict[str, str]


def tables(first_column: str) -> list[list[Row]]:
    """Every table whose first column has this head, as rows by head."""
    found: list[list[Row]] = []
    heads: list[str] | None = None
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            heads = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if heads is None:
            heads = cells
            if heads[0] == first_column:
                found.append([])
        elif heads[0] == first_column and not set(cells[0]) <= set("- "):
            found[-1].append(dict(zip(heads, cells, strict=True)))
    assert found, f"no table has {first_column!r} as its first column"
    return found


def rows(first_column: str) -> list[Row]:
    return [row for table in tables(first_column) for row in table]


def bare(cell: str) -> str:
    return cell.strip("`")


def fields_of(kind: Any) -> str:
    """The fields of a message as the page writes them: name, type and bounds, and a default where there is one."""
    told = []
    for field in msgspec.inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        text = f"`{field.name}` {type_of(field.type)}"
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        told.append(text if default is msgspec.NODEFAULT else f"{text} = {value_of(default)}")
    return "; ".join(told) or "none"


def type_of(kind: Any) -> str:
    inspect = msgspec.inspect
    match kind:
        case inspect.IntType(ge=None):
            return "int"
        case inspect.IntType(ge=low, le=high, lt=below):
            high = below - 1 if high is None else high
            return f"{low}..{POWERS.get(high, high)}"
        case inspect.BoolType():
            return "bool"
        case inspect.StrType(max_length=most):
            return "text" if most is None else f"text ≤ {most}"
        case inspect.BytesType(min_length=least, max_length=most):
            return f"{most} bytes" if least == most else f"bytes ≤ {most}"
        case inspect.ListType(item_type=item, max_length=most) | inspect.VarTupleType(item_type=item, max_length=most):
            return f"[{type_of(item)}]" if most is None else f"[{type_of(item)}] ≤ {most}"
        case inspect.StructType(cls=cls):
            return str(cls.__name__)
        case inspect.NoneType():
            return "nil"
        case inspect.UnionType(types=types):
            return " or ".join(type_of(one) for one in types)
    raise AssertionError(f"the page has no words for {kind}")


def value_of(default: Any) -> str:
    if isinstance(default, msgspec.Struct):
        return "all 0"
    if isinstance(default, tuple | list):
        return "[]"
    return msgspec.json.encode(default).decode().replace("null", "nil")


def structs(*, tagged: bool) -> dict[str, Any]:
    found = {}
    for module in (client, control, worker, layout):
        for name, kind in vars(module).items():
            own = isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
            if own and (kind.__struct_config__.tag is not None) is tagged:
                found[name] = kind
    return found


def test_every_message_is_in_a_table_with_its_tag_and_its_fields() -> None:
    told = {bare(row["Message"]): row for row in rows("Message")}
    kinds = structs(tagged=True)
    assert sorted(told) == sorted(kinds)
    for name, kind in kinds.items():
        assert told[name]["Tag"] == str(kind.__struct_config__.tag), name
        assert told[name]["Fields"] == fields_of(kind), name
        assert all(told[name].values()), f"{name}: a cell is empty"


def test_each_table_of_messages_is_one_direction() -> None:
    accepted = [
        {case.cls.__name__ for case in getattr(kind, "types", [kind])}
        for kind in (msgspec.inspect.type_info(codec._decoder.type) for codec in CODECS.values())
    ]
    assert sorted(map(sorted, accepted)) == sorted(sorted(bare(r["Message"]) for r in t) for t in tables("Message"))


def test_every_struct_inside_messages_is_in_a_table_with_its_fields() -> None:
    told = {bare(row["Struct"]): row["Fields"] for row in rows("Struct")}
    kinds = structs(tagged=False)
    assert sorted(told) == sorted(kinds)
    for name, kind in kinds.items():
        assert told[name] == fields_of(kind), name


def test_table_of_endings_agrees_with_the_code() -> None:
    told = {int(row["Ending"]): bare(row["Word"]) for row in rows("Ending")}
    assert told == {int(ending): ending.name.lower() for ending in Ending}
    for row in rows("Ending"):
        assert row["Kind"] == ("answer" if int(row["Ending"]) < FIRST_REFUSAL else "refusal")


def test_table_of_reasons_agrees_with_the_code() -> None:
    told = {int(row["Reason"]): bare(row["Word"]) for row in rows("Reason")}
    assert told == {int(reason): reason.code for reason in Reason}


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_who_says_a_reason_is_who_the_code_lets_say_it(reason: Reason) -> None:
    sources = {
        "router": source_of(router) + source_of(shm, "layout.py"),
        "worker": source_of(workers) + source_of(shm, "tensors.py"),
    }
    said_by = next(row["Said by"] for row in rows("Reason") if int(row["Reason"]) == reason)
    named = {who for who, source in sources.items() if re.search(rf"\bReason\.{reason.name}\b", source)}
    for who in ("router", "worker"):
        if who in said_by:
            assert who in named or reason is Reason.OK
    if said_by in {"nobody yet", "client"}:
        assert not named


def source_of(package: Any, name: str = "*.py") -> str:
    return "\n".join(path.read_text() for path in Path(package.__file__).parent.rglob(name))


def test_table_of_limits_agrees_with_the_code() -> None:
    told = {bare(row["Limit"]): row["Value"] for row in rows("Limit")}
    values = {name: value for name, value in vars(limits).items() if name.isupper() and name != "PROTOCOL_VERSION"}
    assert told == {name: POWERS.get(value, str(value)) for name, value in values.items()}


def test_table_of_dtypes_agrees_with_the_code() -> None:
    told = {int(row["Code"]): (bare(row["Dtype"]), int(row["Bytes"])) for row in rows("Code")}
    assert told == {code: (name, size) for code, (name, size, _) in DTYPES.items()}


def test_the_page_names_the_version_it_is_of() -> None:
    assert f"This page is of protocol version {limits.PROTOCOL_VERSION}." in PAGE


def test_the_worked_example_is_the_frame_that_the_code_makes() -> None:
    block = re.search(r"^```hex\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert block
    lines = [line.split("  ", 1) for line in block.group(1).splitlines()]
    frame = bytes.fromhex("".join(line[0] for line in lines))
    assert all(line[1].strip() for line in lines), "every group of bytes says what it is"
    assert frame == encoded("request.Submit")
    assert client.request_codec.decode(frame) == SUBMIT


def test_fields_with_a_default_may_be_left_out_from_the_end_on() -> None:
    short = msgspec.msgpack.encode([17, 7, [[258, 0, 1_000_000_000_000, 3, 1, 2]]])
    assert client.request_codec.decode(short) == SUBMIT


def test_the_layouts_shown_are_those_of_the_code() -> None:
    plan = layout.RowPlan((layout.TensorSpec("x", 1, ("N", 30)), layout.TensorSpec("k", 7, ("N",))))
    shown = f"`x` at {plan.offsets(2)[0]}, `k` at {plan.offsets(2)[1]}, {plan.payload_bytes(2)} bytes in all"
    assert shown in PAGE
    described = Submit(7, [Request(1, 0, 1, 0, 1, 0, 0, (Tensor(0, 1, (2, 30), 0, 240),))])
    assert client.request_codec.decode(client.request_codec.encode(described)) == described


if __name__ == "__main__":
    for name, kind in {**structs(tagged=True), **structs(tagged=False)}.items():
        print(name, fields_of(kind))
