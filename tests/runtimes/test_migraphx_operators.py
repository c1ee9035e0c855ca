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


@pytest.mark.parametrize(
    "family", ["sd1", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sd2", "sdxl", "sd3", "sd35m", "svd"))]
)
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_every_operator_of_a_family_is_documented(exported, family, precision):
    listed, opened = rows(), exported(family)
    for part, used in page.operators(opened, precision).items():
        assert used <= page.DOCUMENTED, part
        assert all(family in listed[name][0] for name in used), part
    expanded = page.exported(opened) & page.EXPANDED.keys()
    assert expanded
    assert all(family in listed[name][0] for name in expanded)


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
