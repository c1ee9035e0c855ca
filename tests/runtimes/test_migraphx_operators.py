"""The operators that MIGraphX gets are those of docs/migraphx.md, and it documents each of them."""

import re

import onnx_ir as ir
import pytest

from latentc.compiler.lower import lowered
from latentc.core.shapes import Setting, shape_of, sizes

from . import migraphx_operators as page

ROW = re.compile(r"\| (\w+) \| ([\w, ]+) \| (.*) \|")


def rows():
    _, *found = ROW.findall(page.PAGE.read_text())  # the first is the header
    return {name: (families.split(", "), what) for name, families, what in found}


def test_the_page_names_its_source_and_every_limit():
    text = page.PAGE.read_text()
    assert page.SOURCE in text
    assert rows()
    for name, (_, what) in rows().items():
        if name in page.EXPANDED:
            assert what == f"expanded by latentc: {page.EXPANDED[name]}"
        else:
            assert name in page.DOCUMENTED
            assert page.LIMITS.get(name, "documented") in what


FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "sd35m", "svd")
OTHERS = {"sd1_inpainting": "sd1", "sd1_edit": "sd1", "sdxl_refiner": "sdxl", "sd35l": "sd35m"}
"""Families without a row, and one that has their operators."""


def listed(family):
    return {name for name, (families, _) in rows().items() if family in families}


def used(bundle):
    """The operators of a bundle, in f32 and f16, which must all be within the limits."""
    found = page.exported(bundle) & page.EXPANDED.keys()
    assert found
    for precision in ("f32", "f16"):
        for part, model in page.graphs(bundle, precision):
            assert page.operators(model) <= page.DOCUMENTED, part
            assert not page.beyond_limits(model), part
            found |= page.operators(model)
    return found


@pytest.mark.parametrize("family", ["sd1", *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES[1:])])
def test_the_table_has_the_operators_of_a_family_and_no_more(exported, family):
    assert used(exported(family)) == listed(family)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "like"), OTHERS.items())
def test_families_without_a_row_have_the_operators_of_another(exported, family, like):
    assert family not in FAMILIES
    assert used(exported(family)) <= listed(like)


def test_the_table_has_no_other_families():
    assert {family for families, _ in rows().values() for family in families} == {*FAMILIES}


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "beyond"),
    [
        ("Cast", ["x"], {"to": 1}, False),
        ("Cast", ["x"], {"to": 17, "saturate": 0}, True),
        ("Einsum", ["x", "c"], {"equation": "bij,jk->bik"}, False),
        ("Einsum", ["x"], {"equation": "iijj->ij"}, True),
        ("Einsum", ["x"], {"equation": "ii...->i..."}, True),
        ("ReduceMean", ["x", "c"], {}, False),
        ("ReduceMean", ["x", "x"], {}, True),
        ("Reshape", ["x", "shape"], {}, False),
        ("Reshape", ["x", "sum"], {}, True),
        ("Resize", ["x", None, "c"], {"mode": "nearest"}, False),
        ("Resize", ["x", None, "c"], {"mode": "linear"}, True),
    ],
)
def test_limits_are_seen(operator, inputs, attributes, beyond):
    """Nodes after a constant `c`, the shape of the input `x`, and what depends on its values."""
    values = {"x": ir.Value(name="x"), "c": ir.Value(name="c"), None: None}
    nodes = [ir.node("Shape", [values["x"]]), ir.node("Add", [values["x"], values["c"]])]
    values |= {"shape": nodes[0].outputs[0], "sum": nodes[1].outputs[0]}
    nodes.append(ir.node(operator, [values[name] for name in inputs], attributes))
    graph = ir.Graph([values["x"]], nodes[-1].outputs, nodes=nodes, opset_imports={"": 18})
    values["c"].const_value = ir.tensor([1], name="c")
    graph.register_initializer(values["c"])
    assert bool(page.beyond_limits(ir.Model(graph, ir_version=10))) == beyond


def test_an_operator_that_it_does_not_document_would_be_seen():
    assert not {"Attention", "RMSNormalization"} & page.DOCUMENTED


def test_no_reshape_needs_a_zero(exported):
    """MIGraphX's parser ignores `allowzero`, which exported graphs have: a zero in their shapes would mean another."""
    opened, found = exported("sd1"), 0
    for name, part in opened.manifest.parts.items():
        setting = sizes(opened.manifest.model, part.role, Setting(*opened.manifest.model.own_size))
        shape = {tensor.name: shape_of(tensor.shape, setting) for tensor in part.inputs}
        with lowered(opened.graph(name), name, 18, shape) as path:
            model = ir.load(path)
        for node in model.graph:
            if node.op_type != "Reshape" or not (
                node.attributes.get("allowzero") and node.attributes["allowzero"].value
            ):
                continue
            sizes_ = ir.convenience.get_const_tensor(node.inputs[1])
            found += 1
            assert sizes_ is None or 0 not in sizes_.numpy()
    assert found
