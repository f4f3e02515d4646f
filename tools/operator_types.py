"""Writes `src/onnx/ops/outputs.rs`: what the operators' schemas say about the types of their outputs.

The schemas are those that ONNX Runtime registers, the standard operators of ONNX among them. Where a schema leaves the type to an
attribute, `SPECIAL` tells the rule. Run it with onnxruntime (1.32.0 for the committed file):

    python tools/operator_types.py > src/onnx/ops/outputs.rs
"""

import collections

from onnxruntime.capi import onnxruntime_pybind11_state as state

NAMES = {"float": "FLOAT", "uint8": "UINT8", "int8": "INT8", "int32": "INT32", "int64": "INT64", "string": "STRING",
         "bool": "BOOL", "float16": "FLOAT16", "double": "DOUBLE", "bfloat16": "BFLOAT16"}

# Types that depend on attributes or on whether an input is given, by operator (ONNX operator specification).
SPECIAL = {
    ("", "Bernoulli"): ['Attribute("dtype", &Same(&[0]))'],
    ("", "BitCast"): ['Attribute("to", &Unknown)'],
    ("", "BlackmanWindow"): ['Attribute("output_datatype", &Fixed(D::FLOAT))'],
    ("", "Cast"): ['Attribute("to", &Unknown)'],
    ("", "Constant"): ["Constant"],
    ("", "ConstantOfShape"): ["Value"],
    ("", "DequantizeLinear", 23): ['Attribute("output_dtype", &Same(&[1]))'],
    ("", "EyeLike"): ['Attribute("dtype", &Same(&[0]))'],
    ("", "HammingWindow"): ['Attribute("output_datatype", &Fixed(D::FLOAT))'],
    ("", "HannWindow"): ['Attribute("output_datatype", &Fixed(D::FLOAT))'],
    ("", "If"): ["Branches*"],
    ("", "LayerNormalization", 1): ["Same(&[1, 2])"] + ['Attribute("stash_type", &Fixed(D::FLOAT))'] * 2,
    ("", "LayerNormalization", 17): ["Same(&[0, 1, 2])"] + ['Attribute("stash_type", &Fixed(D::FLOAT))'] * 2,
    ("", "MelWeightMatrix"): ['Attribute("output_datatype", &Fixed(D::FLOAT))'],
    ("", "Multinomial"): ['Attribute("dtype", &Fixed(D::INT32))'],
    ("", "QuantizeLinear"): ['Attribute("output_dtype", &Given(2, &Fixed(D::UINT8)))'],
    ("", "RandomNormal"): ['Attribute("dtype", &Fixed(D::FLOAT))'],
    ("", "RandomNormalLike"): ['Attribute("dtype", &Same(&[0]))'],
    ("", "RandomUniform"): ['Attribute("dtype", &Fixed(D::FLOAT))'],
    ("", "RandomUniformLike"): ['Attribute("dtype", &Same(&[0]))'],
    ("", "SimplifiedLayerNormalization"): ["Same(&[1])", 'Attribute("stash_type", &Fixed(D::FLOAT))'],
    ("com.microsoft", "QGemm"): ["Given(8, &Fixed(D::FLOAT))"],
    ("com.microsoft", "QuantizeLinear"): ["Given(2, &Fixed(D::UINT8))"],
}


def fixed(text):
    name = text[7:-1] if text.startswith("tensor(") else None
    return f"Fixed(D::{NAMES[name]})" if name in NAMES else None


def rules(schema):
    """One rule an output; a last one with `*` holds for all outputs from there on."""
    allowed = {c.type_param_str: list(c.allowed_type_strs) for c in schema.type_constraints}
    found = []
    for output in schema.outputs:
        kind = output.typeStr
        variadic = str(output.option).endswith("Variadic")
        types = allowed.get(kind, [kind])
        single = fixed(types[0]) if len(types) == 1 else None
        alike = [(i, p) for i, p in enumerate(schema.inputs) if p.typeStr == kind]
        many = [i for i, p in alike if str(p.option).endswith("Variadic") and p.isHomogeneous]
        some = [i for i, p in alike if not str(p.option).endswith("Variadic")]
        if not any(t.startswith("tensor(") for t in types) or (variadic and not output.isHomogeneous):
            rule = "Unknown"
        elif single:
            rule = single
        elif many:
            rule = f"All({many[0]})"
        elif some:
            rule = f"Same(&[{', '.join(map(str, some))}])"
        else:
            rule = "Unknown"
        found.append(rule + ("*" if variadic else ""))
    return tuple(found)


def main():
    operators = collections.defaultdict(dict)
    for schema in state.get_all_operator_schema():
        if schema.domain in ("", "com.microsoft"):
            at = (schema.domain, schema.name)
            version = schema.since_version
            special = SPECIAL.get((*at, version), SPECIAL.get(at))
            operators[at][version] = () if schema.deprecated else tuple(special or rules(schema))
    groups = collections.defaultdict(list)
    for (domain, name), versions in sorted(operators.items()):
        merged = []
        for version in sorted(versions):
            if not merged or merged[-1][1] != versions[version]:
                merged.append((version, versions[version]))
        for (since, outputs), following in zip(merged, merged[1:] + [None]):
            until = following[0] - 1 if following else None
            if outputs:
                groups[domain, since, until, outputs].append(name)
    print("//! What the schemas of the operators say about the types of their outputs. Made by `tools/operator_types.py`.")
    print()
    print("use super::Domain::{Microsoft, Standard};")
    print("use super::Type::{All, Attribute, Branches, Constant, Fixed, Given, Same, Unknown, Value};")
    print("use super::{Domain, Type};")
    print("use crate::onnx::tensor::DataType as D;")
    print()
    print("/// Operators whose outputs follow the same rules.")
    print("pub(super) struct Group {")
    print("    pub domain: Domain,")
    print("    /// First and last version of the operator set.")
    print("    pub versions: (i64, i64),")
    print("    /// The rule of each output.")
    print("    pub outputs: &'static [Type],")
    print("    /// Whether the last rule holds for all outputs from there on.")
    print("    pub variadic: bool,")
    print("    /// Names of the operators, with spaces between.")
    print("    pub names: &'static str,")
    print("}")
    print()
    print("#[rustfmt::skip]")
    print("pub(super) const GROUPS: &[Group] = &[")
    for (domain, since, until, outputs), names in sorted(groups.items(), key=lambda g: (g[0][0], g[1])):
        place = "Microsoft" if domain else "Standard"
        last = "i64::MAX" if until is None else until
        variadic = str(outputs[-1].endswith("*")).lower()
        texts = ", ".join(o.removesuffix("*") for o in outputs)
        print(f"    Group {{ domain: {place}, versions: ({since}, {last}), outputs: &[{texts}], variadic: {variadic}, names: \"\\")
        line = "       "
        for name in names:
            if len(line) + len(name) > 110:
                print(line + " \\")
                line = "       "
            line += " " + name
        print(line + '" },')
    print("];")


main()
