"""The signatures of fastclip._C, as its stub and as pybind11's docstrings give them."""

import ast
import re


def stub_signatures(text: str) -> dict[str, str]:
    """Return the signature of each function and method in a stub, by its dotted name."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = _stub_signature(node)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = "class"
            for inner in node.body:
                if isinstance(inner, ast.AnnAssign):
                    found[f"{node.name}.{ast.unparse(inner.target)}"] = "property"
            methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
            found |= {f"{node.name}.{inner.name}": _stub_signature(inner) for inner in methods}
    return found


def _stub_signature(node: ast.FunctionDef) -> str:
    given = [arg for arg in node.args.args if arg.arg != "self"]
    typed = [f"{arg.arg}: {ast.unparse(arg.annotation)}" for arg in given if arg.annotation]
    returns = ast.unparse(node.returns) if node.returns else "?"
    # pybind11 writes a py::list as "list", whatever it holds, and a named tuple as any other.
    arguments = re.sub(r"\blist\[\w+\]", "list", ", ".join(typed)).replace("ClipRequest", "tuple")
    return f"({arguments}) -> {returns}".replace("Dtype", "dtype")


def binding_signatures(module: object) -> dict[str, str]:
    """Return the signature of each function and method of the binding, by its dotted name."""
    found = {}
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, type):
            found[name] = "class"
            if issubclass(value, Exception):
                continue
            # A class that only the extension makes has an __init__ without a signature.
            made = ["__init__"] if "__init__(" in (value.__init__.__doc__ or "") else []
            names = [*made, *(key for key in vars(value) if not key.startswith("_"))]
            for key in names:
                held = getattr(value, key)
                is_property = isinstance(held, property)
                found[f"{name}.{key}"] = "property" if is_property else _binding_signature(held)
        else:
            found[name] = _binding_signature(value)
    return found


def _binding_signature(function: object) -> str:
    text = (function.__doc__ or "").strip()
    signature = text[text.index("(") :]
    signature = re.sub(r"self: [\w.]+(, )?", "", signature)
    signature = re.sub(r"Optional\[(.*?)\]", r"\1 | None", signature)
    signature = re.sub(r"typing\.SupportsFloat( \| typing\.SupportsIndex)?", "float", signature)
    signature = re.sub(r"typing\.SupportsInt( \| typing\.SupportsIndex)?", "int", signature)
    signature = re.sub(r"\b(torch|typing|fastclip\._C)\.", "", signature)
    given, arrow, returned = signature.partition(" -> ")
    given = re.sub(r"(collections\.abc\.Sequence|list)\[\w+\]", "list", given)
    return given + arrow + returned
