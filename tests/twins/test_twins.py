"""The twins stay twins: what can be read off both syntax trees is the same, the frameworks' own words aside."""

import ast
import importlib.util
import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JAX, TORCH = ROOT / "jax_mt3", ROOT / "torch_mt3"

# linen's name of a method -> PyTorch's
METHODS = {"setup": "__init__", "__call__": "forward"}

# the same thing in both: what holds the weights, and who holds it
SAME_WORDS = (
    (r"\b(flax|pytorch|jax|torch)(_mt3)?\b", "framework"),
    (r"\b(params|parameters|parameter tree|model|state_dict|state dicts?)\b", "weights"),
    (r"\b(the|framework|weights's) ", ""),
)

# file -> public names that only one twin has
ONE_SIDED = {
    # PyTorch's own files are read without it and written with it; JAX takes NumPy's bfloat16 as it is
    "checkpoint.py": {"to_hf_t5", "mt3_name", "state_dict_key", "tensor_of", "array_of"},
    # only JAX compiles
    "infer.py": {"keep_compiled", "programs_folder"},
    # PyTorch's processes add their gradients up themselves
    "devices.py": {"Devices.sum_up"},
    # linen is told in other ways what to compute twice, and which outputs to keep
    "objective.py": {"is_supervised", "rematerialise", "rematerialised"},
    "decode.py": {"compiled_functions", "prefill_rows", "select_rows", "with_prefilled"},
}

# files that only one twin has
ONE_SIDED_FILES = {
    # only JAX compiles
    "compiled.py",
    # XLA fuses the passes that PyTorch's own gradients would make
    "gradients.py",
}

# files that have nothing in common but their name: what makes a machine fast
FREE_FILES = {"kernels.py"}

# files that are one text: the same statements in common words (tests/tools/twins.py)
ONE_TEXT_FILES = ("losses.py", "optimizers.py", "search.py", "weights.py")

# the statements in them that only one twin has
OWN_STATEMENTS = {
    # a PyTorch module knows its config, a tree of arrays does not
    "config = weights.config",
    # JAX takes a config for a constant
    "jax.tree_util.register_static(NetworkConfig)",
}

# function -> an argument that only one twin needs
OWN_ARGUMENTS = {
    # a PyTorch module knows its config, a tree of arrays does not
    "pack": "config",
    "loss_and_gradients": "config",
    # only JAX compiles
    "generator": "folder",
    "make_batch": "folder",
}


def tool() -> object:
    """The module tests/tools/twins.py, which `make diff` runs."""
    spec = importlib.util.spec_from_file_location("twins", ROOT / "tests" / "tools" / "twins.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = tool()


def same_words(text: str) -> str:
    """Lower-case text with the frameworks' words replaced by common ones."""
    text = text.lower()
    for pattern, word in SAME_WORDS:
        text = re.sub(pattern, word, text)
    return text


def arguments(function: ast.FunctionDef) -> str:
    """'(self, x, train=False)': names and defaults in common words, without annotations and OWN_ARGUMENTS."""
    bare = ast.parse(ast.unparse(function)).body[0].args
    for argument in ast.walk(bare):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    own = OWN_ARGUMENTS.get(function.name)
    if bare.args and bare.args[-1].arg == own:
        # defaults belong to the last arguments
        bare.defaults = bare.defaults[:-1]
    bare.args = [argument for argument in bare.args if argument.arg != own]
    return f"({same_words(ast.unparse(bare))})"


def opening(node: ast.AST) -> str:
    """The first words of a docstring, up to the first punctuation, in common words."""
    return re.split(r"[:;,.(]\s|[:;,.]$", same_words(ast.get_docstring(node) or "NO DOCSTRING"))[0].strip()


def docstring(node: ast.AST) -> str:
    return re.sub(r"Flax|PyTorch|jax_mt3|torch_mt3", "FRAMEWORK", ast.get_docstring(node) or "")


def in_order(node: ast.AST) -> Iterator[ast.AST]:
    """A node and everything below it, as one reads; self.config.emb_dim is one node."""
    yield node
    if not root_of(node)[0]:
        for child in ast.iter_child_nodes(node):
            yield from in_order(child)


def root_of(node: ast.AST) -> tuple[str, str]:
    """('self', 'config') of self.config.emb_dim, ('x', '') of x, ('', '') of anything else."""
    attribute = ""
    while isinstance(node, ast.Attribute):
        node, attribute = node.value, node.attr
    return (node.id, attribute) if isinstance(node, ast.Name) else ("", "")


def shared_parts(statement: ast.AST, own: set[str], known: set[str], numbers: bool) -> list[str]:
    """List what of a statement both frameworks must spell alike, as one reads.

    Args:
        own: attributes of self that the class itself declares.
        known: functions and classes that both files share; their calls are shown with those arguments that are plain.
        numbers: whether to show numbers too.
    """

    def plain(argument: ast.AST) -> str:
        is_plain = isinstance(argument, ast.Name | ast.Constant) or root_of(argument)[0] == "self"
        return ast.unparse(argument) if is_plain else "…"

    parts = []
    for node in in_order(statement):
        if isinstance(node, ast.Call):
            name, attribute = root_of(node.func)
            if name in known or (name == "self" and attribute in own):
                shown = [plain(argument) for argument in node.args]
                shown += [f"{keyword.arg}={plain(keyword.value)}" for keyword in node.keywords]
                parts.append(f"{ast.unparse(node.func)}({', '.join(shown)})")
        elif isinstance(node, ast.Attribute) and root_of(node)[0] == "self" and root_of(node)[1] in own:
            parts.append(ast.unparse(node))
        elif numbers and isinstance(node, ast.Constant) and type(node.value) in (int, float):
            parts.append(repr(node.value))
    return parts


def method_outline(title: str, body: list[ast.stmt], own: set[str], known: set[str]) -> list[str]:
    """One line per statement: what it assigns or tests, and its shared parts; blocks are entered."""
    lines = []
    for statement in body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if isinstance(statement, ast.If | ast.For):
            head = statement.test if isinstance(statement, ast.If) else statement.iter
            lines.append(f"{title}: {type(statement).__name__} {ast.unparse(head)}")
            lines += method_outline(title, statement.body, own, known)
            lines += method_outline(title, statement.orelse, own, known)
        else:
            targets = ", ".join(ast.unparse(target) for target in getattr(statement, "targets", []))
            parts = " ".join(shared_parts(statement, own, known, numbers=True))
            lines.append(f"{title}: {type(statement).__name__} {targets} <- {parts}")
    return lines


def class_outline(node: ast.ClassDef, known: set[str]) -> list[str]:
    """A module class: docstring, constructor arguments, attributes with what they are made of, methods."""
    methods = {METHODS.get(item.name, item.name): item for item in node.body if isinstance(item, ast.FunctionDef)}
    fields = {item.target.id: ast.unparse(item.annotation) for item in node.body if isinstance(item, ast.AnnAssign)}
    init = methods.pop("__init__", None)
    made = init.body if init else []
    if init and init.name == "__init__":
        fields = {item.arg: ast.unparse(item.annotation) for item in init.args.args[1:]}
        prologue = [ast.parse("super().__init__()").body[0], *(ast.parse(f"self.{f} = {f}").body[0] for f in fields)]
        if list(map(ast.dump, made[: len(prologue)])) == list(map(ast.dump, prologue)):
            made = made[len(prologue) :]

    lines = [f"class {node.name}: {docstring(node)}", f"{node.name} is made from {fields}"]
    own = {*fields, *methods}
    for statement in made:
        own |= {root_of(target)[1] for target in getattr(statement, "targets", []) if root_of(target)[0] == "self"}
    for statement in made:
        targets = ", ".join(ast.unparse(target) for target in getattr(statement, "targets", []))
        parts = " ".join(shared_parts(getattr(statement, "value", statement), own, known, numbers=False))
        lines.append(f"{node.name} has {targets} <- {parts}")
    for name, method in methods.items():
        decorators = [ast.unparse(decorator) for decorator in method.decorator_list]
        lines.append(f"{node.name}.{name}{arguments(method)} {decorators}: {docstring(method)}")
        lines += method_outline(f"{node.name}.{name}", method.body, own, known)
    return lines


def network_outline(source: str) -> list[str]:
    """model.py in lines that both twins must share: order, names, arguments, docstrings, layers, calls, numbers."""
    tree = ast.parse(source)
    known = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    lines = [docstring(tree)]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            lines.append(f"def {node.name}{arguments(node)}: {opening(node)}")
        elif isinstance(node, ast.ClassDef):
            lines += class_outline(node, known | {"einsum", "rearrange"})
    return lines


def public_outline(source: str, one_sided: set[str] = frozenset()) -> list[str]:
    """The public functions and classes of a file, their arguments and the first words of their docstrings."""
    lines = [opening(ast.parse(source))]
    for node in ast.parse(source).body:
        if getattr(node, "name", "_").startswith("_") or node.name in one_sided:
            continue
        if isinstance(node, ast.FunctionDef):
            lines.append(f"def {same_words(node.name.replace('_', ' '))}{arguments(node)}: {opening(node)}")
        elif isinstance(node, ast.ClassDef):
            lines.append(f"class {node.name}: {opening(node)}")
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and f"{node.name}.{ast.unparse(item.target)}" not in one_sided:
                    lines.append(f"{node.name}.{same_words(ast.unparse(item.target))}")
                elif (
                    isinstance(item, ast.FunctionDef)
                    and not item.name.startswith("_")
                    and f"{node.name}.{item.name}" not in one_sided
                ):
                    lines.append(f"{node.name}.{item.name}{arguments(item)}: {opening(item)}")
    return lines


def text_outline(source: str) -> list[str]:
    """Every statement of a file in common words, one a line, without imports, annotations and decorators."""
    return statement_lines(ast.parse(TOOL.common_words(source)).body)


def statement_lines(body: list[ast.stmt]) -> list[str]:
    """The statements of a block and of the blocks in it."""
    lines = []
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or ast.unparse(statement) in OWN_STATEMENTS:
            continue
        if isinstance(statement, ast.FunctionDef):
            lines.append(f"def {statement.name}{arguments(statement)}")
        elif isinstance(statement, ast.ClassDef):
            lines.append(f"class {statement.name}({', '.join(map(ast.unparse, statement.bases))})")
        elif isinstance(statement, ast.If | ast.For):
            heads = (statement.test,) if isinstance(statement, ast.If) else (statement.target, statement.iter)
            lines.append(f"{type(statement).__name__} {', '.join(map(ast.unparse, heads))}")
        else:
            lines.append(ast.unparse(statement))
            continue
        lines += statement_lines(statement.body)
        if getattr(statement, "orelse", []):
            lines += ["else", *statement_lines(statement.orelse)]
    return lines


@pytest.mark.parametrize("name", ONE_TEXT_FILES)
def test_search_losses_optimizers_and_weights_are_one_text(name):
    jax_source, torch_source = (JAX / name).read_text(), (TORCH / name).read_text()
    lines = text_outline(jax_source)
    assert len(lines) > 20
    assert lines == text_outline(torch_source)
    assert TOOL.equal_share(jax_source, torch_source) >= 0.75


def test_every_own_statement_is_in_one_twin_alone():
    sources = [
        "".join(TOOL.common_words((twin / name).read_text()) for name in ONE_TEXT_FILES) for twin in (JAX, TORCH)
    ]
    for statement in OWN_STATEMENTS:
        assert [statement in source for source in sources].count(True) == 1, statement


def test_the_share_of_equal_lines_counts_lines_in_common_words():
    jax_source = "x = jnp.zeros(3)\n# a comment\n\ny = x.astype(jnp.int32)\nz = 1\n"
    torch_source = "x = torch.zeros(3)\ny = x.to(torch.int32)\n"
    assert TOOL.equal_share(jax_source, torch_source) == pytest.approx(4 / 5)
    assert TOOL.equal_share(jax_source, jax_source) == 1
    assert TOOL.equal_share(jax_source, "w = 2\n") == 0


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        pytest.param("search.py", "NEG_INF = -1e7", "NEG_INF = -1e8", id="constant"),
        pytest.param("search.py", "2 * num_decodes", "num_decodes", id="fewer candidates"),
        pytest.param("search.py", "(age + 1 >= settings", "(age >= settings", id="one step longer"),
        pytest.param("search.py", "state.scores + gain", "state.scores - gain", id="sign"),
        pytest.param("search.py", "< settings.top_p", "<= settings.top_p", id="comparison"),
        pytest.param("search.py", "((5.0 + length) / 6.0)", "((5.0 + length) / 5.0)", id="length penalty"),
        pytest.param("search.py", "descending=True, stable=True", "descending=True", id="keyword left out"),
        pytest.param(
            "search.py",
            "live_scores, live = torch.flip(live_scores, (1,))",
            "live_scores, live = live_scores",
            id="flip",
        ),
        pytest.param("search.py", "        finished=put(state.finished, rows, False),\n", "", id="field not reset"),
        pytest.param("search.py", "    done: torch.Tensor\n", "", id="field missing"),
        pytest.param("search.py", 'if settings.search == "sample":', 'if settings.search != "sample":', id="branch"),
        pytest.param("search.py", "def length_penalty(settings", "def penalty(settings", id="function renamed"),
        pytest.param("search.py", "the best hypothesis last.", "the best hypothesis first.", id="docstring"),
        pytest.param("losses.py", "z_loss: float = 1e-4", "z_loss: float = 1e-3", id="default"),
        pytest.param("losses.py", "(targets > 0)", "(targets >= 0)", id="padding"),
        pytest.param("losses.py", "(positive - 1) * rolls", "positive * rolls", id="weight of positives"),
        pytest.param("losses.py", "-0.5 * distances", "-distances", id="width of the target"),
        pytest.param("optimizers.py", "BETA_1, BETA_2 = 0.9, 0.999", "BETA_1, BETA_2 = 0.9, 0.99", id="decay"),
        pytest.param("optimizers.py", "+ 1e-8) +", "+ 1e-6) +", id="epsilon"),
        pytest.param("optimizers.py", "squared.mean(largest)", "squared.mean(second)", id="axis"),
        pytest.param("optimizers.py", "decay_rate: float = 0.8", "decay_rate: float = 0.7", id="decay rate"),
        pytest.param(
            "optimizers.py",
            "        gradients = {name: gradient * factor",
            "        clipped = {name: gradient * factor",
            id="not clipped",
        ),
        pytest.param("weights.py", '"query", "key", "value")', '"key", "query", "value")', id="order of packing"),
        pytest.param("weights.py", "logits=in_wide_dtype(", "logits=in_dtype(", id="logits rounded"),
        pytest.param(
            "weights.py",
            "for number in range(config.num_encoder_layers)",
            "for number in range(config.num_decoder_layers)",
            id="count",
        ),
        pytest.param("weights.py", "if is_coarse else", "if not is_coarse else", id="condition"),
    ],
)
def test_a_planted_difference_in_one_text_is_seen(name, old, new):
    source = (TORCH / name).read_text()
    assert old in source
    assert text_outline(source.replace(old, new)) != text_outline((JAX / name).read_text())


def test_the_twins_have_the_same_files():
    of_jax, of_torch = ({file.name for file in twin.glob("*.py")} for twin in (JAX, TORCH))
    assert of_jax ^ of_torch == ONE_SIDED_FILES


def test_the_networks_are_twins():
    lines = network_outline((JAX / "model.py").read_text())
    assert len(lines) > 100
    assert lines == network_outline((TORCH / "model.py").read_text())


OTHER_FILES = {file.name for file in JAX.glob("*.py")} - ONE_SIDED_FILES - FREE_FILES - {"model.py"}


@pytest.mark.parametrize("name", sorted(OTHER_FILES))
def test_the_other_files_are_twins(name):
    jax_source, torch_source = (JAX / name).read_text(), (TORCH / name).read_text()
    one_sided = ONE_SIDED.get(name, set())
    assert public_outline(jax_source, one_sided) == public_outline(torch_source, one_sided)


def test_every_declared_exception_is_one():
    jax_source, torch_source = ("\n".join(file.read_text() for file in twin.glob("*.py")) for twin in (JAX, TORCH))
    names = {name.partition(".") for names in ONE_SIDED.values() for name in names}
    patterns = [rf"\n    (def )?{inner}[:(]" if inner else rf"(def|class) {name}\b" for name, _, inner in names]
    patterns += [rf"def {function}\([^)]*\b{argument}\b" for function, argument in OWN_ARGUMENTS.items()]
    for pattern in patterns:
        assert bool(re.search(pattern, jax_source)) != bool(re.search(pattern, torch_source)), pattern


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("class MLP(", "class FeedForward(", id="class renamed"),
        pytest.param(
            "class MLP(nn.Module):", "class Extra(nn.Module):\n    pass\n\n\nclass MLP(nn.Module):", id="class added"
        ),
        pytest.param("        self.mlp_dropout = Dropout(self.config)\n", "", id="attribute missing"),
        pytest.param("self.pre_mlp_layer_norm", "self.mlp_norm", id="attribute renamed"),
        pytest.param("self.wo = dense(self.config.mlp_dim,", "self.wo = dense(self.config.emb_dim,", id="wrong size"),
        pytest.param("head_dim**-0.5)", "head_dim)", id="wrong initialiser"),
        pytest.param("(self.config.num_encoder_layers)", "(self.config.num_decoder_layers)", id="wrong count"),
        pytest.param("def forward(self, frames, train=False)", "def forward(self, frames, train=True)", id="default"),
        pytest.param("inputs_q, inputs_kv, mask", "inputs_kv, inputs_q, mask", id="arguments swapped"),
        pytest.param('with the tanh approximation of GELU."""', 'with GELU."""', id="docstring"),
        pytest.param("b h q k, b k h d -> b q h d", "b h q k, b k h d -> b h q d", id="einops string"),
        pytest.param("+ 1e-6", "+ 1e-5", id="epsilon"),
        pytest.param("-1e10", "-1e9", id="mask value"),
        pytest.param("self.wi_0(x), approximate", "self.wi_1(x), approximate", id="gate swapped"),
        pytest.param("self.attention(y, y, None, train)", "self.attention(y, x, None, train)", id="other input"),
        pytest.param("self.decoder_norm(x)", "x", id="norm left out"),
        pytest.param(", shared_axis=None)", ")", id="keyword left out"),
        pytest.param("        x = self.input_dropout(x, train)\n", "", id="statement left out"),
        pytest.param("if mask is not None:", "if mask is None:", id="condition turned"),
        pytest.param("def dense(in_dim: int, out_dim: int", "def dense(out_dim: int, in_dim: int", id="function"),
        pytest.param("(self, config: NetworkConfig)", "(self, config: NetworkConfig, rate: float)", id="constructor"),
    ],
)
def test_a_planted_difference_in_the_network_is_seen(old, new):
    source = (TORCH / "model.py").read_text()
    assert old in source
    assert network_outline(source.replace(old, new)) != network_outline((JAX / "model.py").read_text())


def test_reordered_classes_and_attributes_are_seen():
    source = (TORCH / "model.py").read_text()
    tree = ast.parse(source)
    assert network_outline(ast.unparse(tree)) == network_outline(source)
    classes = [index for index, node in enumerate(tree.body) if isinstance(node, ast.ClassDef)]
    for first, second in itertools.pairwise(classes):
        tree = ast.parse(source)
        tree.body[first], tree.body[second] = tree.body[second], tree.body[first]
        assert network_outline(ast.unparse(tree)) != network_outline(source)
    query, key = re.findall(r"        self\.(?:query|key) = .*\n", source)
    assert network_outline(source.replace(query + key, key + query)) != network_outline(source)


def test_compact_modules_are_seen():
    source = (JAX / "model.py").read_text()
    planted = source.replace("    def __call__(self, x):", "    @nn.compact\n    def __call__(self, x):")
    assert network_outline(planted) != network_outline(source)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("def load(", "def read(", id="function renamed"),
        pytest.param("def load(path, preset=None)", "def load(path, preset='mt3')", id="default"),
        pytest.param("def load(path, preset=None)", "def load(preset, path=None)", id="arguments"),
        pytest.param('"""Model of', '"""Optimizer of', id="docstring"),
        pytest.param('"""Model of a checkpoint: or an error."""', "pass", id="no docstring"),
        pytest.param("rate: float", "speed: float", id="field"),
        pytest.param("def step(self)", "def step(self, size)", id="method"),
    ],
)
def test_a_planted_difference_in_another_file_is_seen(old, new):
    jax_source = '''"""Weights in JAX."""
def load(path, preset=None):
    """Flax params of a checkpoint, or an error."""
def _private(): pass
class State:
    """What is kept."""
    rate: float
    def step(self): "One step."
'''
    torch_source = '''"""Weights in PyTorch."""
def load(path, preset=None):
    """Model of a checkpoint: or an error."""
class State:
    """What is kept."""
    rate: float
    def step(self): "One step."
'''
    assert public_outline(jax_source) == public_outline(torch_source)
    assert old in torch_source
    assert public_outline(jax_source) != public_outline(torch_source.replace(old, new))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_diff_shows_every_file_of_both():
    shown = subprocess.run(["make", "diff"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    files = {file.relative_to(JAX).as_posix() for file in JAX.rglob("*.py")} - ONE_SIDED_FILES
    assert "yourmt3/model.py" in files
    shares = dict(re.findall(r"(?m)^([\w/]+\.py) +([0-9]+) % of the lines are equal", shown.stdout))
    assert shares.keys() == files
    assert all(int(shares[name]) >= 75 for name in ONE_TEXT_FILES)
    assert {line for line in shown.stdout.splitlines() if line.startswith("== ")} == {
        f"== jax_mt3/{name} | torch_mt3/{name}" for name in files
    }
