"""A device `mps` without a Mac: its tensors are on `mps` for torch and every library, and are computed on the CPU.

`run` starts a script in a process of its own that believes in an Apple GPU, as do all Pythons that it starts. What MPS
can't do raises the error that MPS raises: float64, an operator without a kernel, tensors of two devices, a generator of
the CPU. What MPS could do but these scripts must not is noted in `Report.broken`: half precision, autocast, a loss
scale, pinned memory, torch.cuda.

Which operators have a kernel is read from torch's own list, native_functions.yaml. An operator that torch composes of
others is composed here too, so that those are checked in their turn. What this can't know: whether Metal's results are
right, how much memory they take, and how fast they are.
"""

import ctypes
import functools
import json
import multiprocessing
import os
import runpy
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.utils._device
import torch.utils._pytree as pytree
import torchgen
import yaml

ROOT = str(Path(__file__).resolve().parent.parent)
MPS = torch.device("mps", 0)
# What the device is called in C++: the one that torch offers to backends in Python, since autograd knows no MPS here.
IN_CPP = "like_mps"
COMPOSED = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
GIB = 2**30
OPS = torch.ops.aten
FLOAT64 = (torch.float64, torch.complex128)
HALF = (torch.float16, torch.bfloat16)
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
# Composed in C++ of what no dispatcher sees: copy_ has code of its own for MPS, the other one makes a view.
WHOLE = {"aten::copy_", "aten::_unsafe_view"}
# These take tensors of the CPU too: MPS copies indices to the device by itself.
MIXED = {"aten::copy_", "aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}
# Whose result is of a size that only the kernel knows: made by another operator, which needs a kernel.
FACTORIES = {
    "arange": "arange.start_out",
    "arange.start": "arange.start_out",
    "arange.start_step": "arange.start_out",
    "linspace": "linspace.out",
    "eye": "eye.out",
    "eye.m": "eye.m_out",
    "randperm": "randperm.generator_out",
    "tril_indices": "tril_indices",
    "triu_indices": "triu_indices",
}


@dataclass
class Report:
    """What was computed on the device, and which rules were broken, with the place that broke them."""

    operators: set[str] = field(default_factory=set)
    dtypes: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)

    def note(self, kind: str, what: str) -> None:
        """Also in the file of all processes, at once: some are killed."""
        known = getattr(self, kind)
        if what not in known:
            known.add(what)
            with open(os.environ[FILE], "a") as file:
                file.write(json.dumps([kind, what]) + "\n")


REPORT = Report()
FILE = "FAKE_MPS_REPORT"  # the environment's variable with its path
# What each Python that a script starts executes first; multiprocessing's tracker needs no device.
SITE = """
import sys
if "resource_tracker" not in " ".join(sys.orig_argv):
    from tests import fake_mps
    fake_mps.pretend()
"""


@functools.cache
def kernels() -> dict[str, dict]:
    """The entries of native_functions.yaml by the operator's name with its overload."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {entry["func"].split("(")[0]: entry for entry in entries}


@functools.cache
def kind_of_kernel(name: str) -> str:
    """How MPS computes an operator such as `aten::add.Tensor`: by a `kernel`, `composed` of others, or `missing`."""
    space, _, short = name.partition("::")
    entry = kernels().get(short)
    if space != "aten" or entry is None:
        return "missing"
    keys = {key for keys in entry.get("dispatch", {}) for key in keys.replace(" ", "").split(",")}
    if "structured_delegate" in entry:
        keys |= {
            key
            for one in kernels()[entry["structured_delegate"]]["dispatch"]
            for key in one.replace(" ", "").split(",")
        }
    if "MPS" in keys:
        return "kernel"
    if not keys or any(key.startswith("Composite") for key in keys):
        return "composed"
    return "missing"


def require_kernel(name: str) -> str:
    """How the operator is computed; refuses one without a kernel as MPS does."""
    kind = kind_of_kernel(name)
    if kind == "missing":
        REPORT.note("broken", f"{name} has no kernel for MPS, called at {place()}")
        raise NotImplementedError(f"The operator '{name}' is not currently implemented for the MPS device")
    return kind


def is_ours(path: str) -> bool:
    return path == sys.argv[0] or path.startswith(ROOT + "/") and "site-packages" not in path and path != __file__


def place() -> str:
    """The innermost line of this repository, beyond this file, that is being executed."""
    frame = sys._getframe(1)
    while frame:
        if is_ours(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename.removeprefix(ROOT + '/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "a library"


class MpsTensor(torch.Tensor):
    """A tensor on `mps:0` whose values are in `inner`, on the CPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        if inner.dtype in FLOAT64:
            raise TypeError(NO_FLOAT64)
        if inner.dtype in HALF:
            REPORT.note("broken", f"{inner.dtype} at {place()}")
        REPORT.note("dtypes", str(inner.dtype))
        options = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        with torch.inference_mode(inner.is_inference()):  # a view of a tensor from outside is none of inference mode
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **options, device=f"{IN_CPP}:0")

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def __tensor_flatten__(self):  # torch then swaps a module's parameters whole, where they are moved
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return MpsTensor(inner["inner"])

    def __repr__(self):
        return f"{self.inner!r} on mps"

    device = property(lambda self: MPS)
    is_mps = property(lambda self: True)

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def to(self, *args, **kwargs):
        device, dtype, _, layout = torch._C._nn._parse_to(
            *args, **{key: value for key, value in kwargs.items() if key != "copy"}
        )
        stays = (device is None or device.type in ("mps", IN_CPP)) and dtype in (None, self.dtype)
        if stays and not kwargs.get("copy") and layout is None:
            return self
        return super().to(*args, **kwargs)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name, function = INSTEAD.get(func.name(), (func.name(), func))
        REPORT.note("operators", name)
        if not is_plain_view(func) and name not in WHOLE and require_kernel(name) == "composed":
            return checked(name, func.redispatch(COMPOSED, *args, **kwargs or {}))
        return compute(name, function, args, with_generator(func, kwargs or {}))


@functools.cache
def is_plain_view(func) -> bool:
    """Whether an operator only looks at the same values in another way: no composition, such as `to` or `reshape`."""
    implicit = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return func.is_view and not implicit


def checked(name: str, result):
    """The result of an operator composed in C++; refuses a tensor without values, which it made by itself."""
    for one in result if isinstance(result, tuple | list) else [result]:
        if isinstance(one, torch.Tensor) and one.device.type == IN_CPP:
            raise AssertionError(f"{name} makes its result by itself: add it to WHOLE in {__file__}")
    return result


def with_generator(func, kwargs: dict) -> dict:
    """The arguments with the device's own generator, which a generator of the CPU can't replace."""
    if "generator" not in parameters_of(func):
        return kwargs
    if kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'mps' device type for generator but found 'cpu'")
    return kwargs | {"generator": generator()}


@functools.cache
def parameters_of(func) -> set[str]:
    return {argument.name for argument in func._schema.arguments}


@functools.cache
def generator() -> torch.Generator:
    return torch.Generator()


def compute(name: str, func, args, kwargs):
    """Call `func` with the values on the CPU; a result that is an argument's tensor is that argument.

    Tensors of the CPU beside those of the device are refused, but for single numbers, as on MPS.
    """
    known: dict[int, torch.Tensor] = {}

    def unwrap(value):
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if not isinstance(value, torch.Tensor):
            return value
        inner = value.inner if isinstance(value, MpsTensor) else value
        known[id(inner)] = value
        if inner is value and value.dim() and name not in MIXED:
            raise RuntimeError(f"{name}: expected all tensors on the same device, found mps:0 and {value.device}")
        return inner

    def wrap(value):
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else MpsTensor(value)

    args, kwargs = pytree.tree_map(unwrap, (args, kwargs))
    return pytree.tree_map(wrap, func(*args, **kwargs))


def convolve_backward(gradient, x, weight, stride, padding, dilation, transposed, output_padding, groups, mask):
    bias = [gradient.shape[1]]
    options = (stride, padding, dilation, transposed, output_padding, groups, mask)
    return OPS.convolution_backward(gradient, x, weight, bias, *options)


def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
    """Attention as C++ composes it on MPS: by one operator if no gradient is wanted, else by the formula's steps."""
    args = (query, key, value, attn_mask, dropout_p, is_causal)
    if dropout_p or torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value)):
        return OPS._scaled_dot_product_attention_math(*args, **options)[0]
    return OPS._scaled_dot_product_attention_math_for_mps(*args, **options)[0]


def drop(x, p, train):
    """Dropout with the device's own random numbers."""
    kept = torch.empty_like(x).bernoulli_(1 - p, generator=generator()).bool() if train else torch.ones_like(x).bool()
    return x * kept / (1 - p if train else 1), kept


# What C++ asks of a device like ours, with the operator of MPS's in its place, and how the CPU computes it.
INSTEAD = {
    "aten::convolution_overrideable": ("aten::_mps_convolution", OPS.convolution),
    "aten::convolution_backward_overrideable": ("aten::mps_convolution_backward", convolve_backward),
    "aten::_scaled_dot_product_attention_math_for_mps": (
        "aten::_scaled_dot_product_attention_math_for_mps",
        OPS._scaled_dot_product_attention_math,
    ),
    "aten::native_dropout": ("aten::native_dropout", drop),
}


def add_kernels() -> None:
    """The operators that make a tensor on `mps` of none."""

    def made(function, name: str):
        def kernel(*args, dtype=None, layout=None, device=None, pin_memory=None, generator=None, **kwargs):
            REPORT.note("operators", f"aten::{name}")
            require_kernel(f"aten::{FACTORIES.get(name, name)}")
            if pin_memory:
                REPORT.note("broken", f"pinned memory at {place()}")
            return MpsTensor(function(*args, dtype=dtype, **kwargs))

        return kernel

    empty = {"empty.memory_format": torch.empty, "empty_strided": torch.empty_strided}
    others = {name: getattr(OPS, name.split(".")[0]) for name in FACTORIES}
    for name, function in (empty | others).items():
        for key in ("MPS", "PrivateUse1"):  # the guard below names the second one, where a device has no index
            LIBRARY.impl(name, made(function, name), key)
    for key in ("PrivateUse1", "AutogradPrivateUse1"):
        LIBRARY.impl("scaled_dot_product_attention", attend, key)


LIBRARY = torch.library.Library("aten", "IMPL")


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self):
        return torch._C._autograd.DeviceType.PrivateUse1


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self):
        return True

    def has_primary_context(self, device):
        return True


def add_guard() -> None:
    """Let autograd find a device: the guard that torch offers to backends in Python also takes MPS's place."""
    torch.utils.rename_privateuse1_backend(IN_CPP)
    torch._C._acc.register_python_privateuseone_hook(_Hooks())
    torch._C._acc.register_python_privateuseone_device_guard(_Guard())
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
    guards = (ctypes.c_void_p * 21).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    mps, private = 13, 20  # c10::DeviceType
    guards[mps] = guards[private]


def report_calls(module: types.ModuleType, allowed: set[str]) -> None:
    """Count every call of the module's functions by this repository."""

    def reported(name: str, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            if is_ours(sys._getframe(1).f_code.co_filename):
                REPORT.note("broken", f"{module.__name__}.{name} at {place()}")
            return function(*args, **kwargs)

        return call

    for name, function in list(vars(module).items()):
        if isinstance(function, types.FunctionType) and name not in allowed:
            setattr(module, name, reported(name, function))


def pin_memory(tensor: torch.Tensor, *_) -> torch.Tensor:
    REPORT.note("broken", f"pinned memory at {place()}")
    return tensor


def report_enabled(cls: type, method: str, enabled) -> None:
    """Count where `method` of the class is called while `enabled` holds."""
    original = getattr(cls, method)

    def call(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        if enabled(self):
            REPORT.note("broken", f"{cls.__name__} at {place()}")
        return result

    setattr(cls, method, call)


def made_here(function):
    """A function that makes a tensor of numbers, and then moves it: in C++ it does so past every dispatch in Python."""

    @functools.wraps(function)
    def make(data, dtype=None, device=None, **kwargs):
        made = function(data, dtype=dtype, **kwargs)
        return made if device is None else made.to(device)

    return make


def pretend() -> None:
    """Give this process a device `mps`."""
    add_guard()
    add_kernels()
    torch.backends.mps.is_available = torch.backends.mps.is_built = torch.backends.mps.is_macos_or_newer = lambda *_: (
        True
    )
    for name, value in {
        "deviceSynchronize": lambda: None,
        "emptyCache": lambda: None,
        "currentAllocatedMemory": lambda: 2 * GIB,
        "driverAllocatedMemory": lambda: 3 * GIB,
        "recommendedMaxMemory": lambda: 22 * GIB,
        "get_default_generator": generator,
        "is_available": lambda: True,
    }.items():
        setattr(torch._C, f"_mps_{name}", value)
    torch._C._has_mps = True
    torch.accelerator.current_accelerator = lambda *_, **__: torch.device("mps")
    torch.utils._device._device_constructors()  # keeps which functions `with torch.device(…)` changes
    torch.tensor, torch.as_tensor = made_here(torch.tensor), made_here(torch.as_tensor)
    report_enabled(torch.autocast, "__enter__", lambda context: context._enabled)
    report_enabled(torch.amp.GradScaler, "__init__", lambda scaler: scaler._enabled)
    torch.Tensor.pin_memory = pin_memory
    report_calls(torch.cuda, {"is_available"})


def run(script: str, words: list, folder: Path) -> Report:
    """What a script, and all that it started, computed on `mps`; fails unless it ended well.

    `script`: its path, from the repository's folder on, without `.py`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny_runs"])
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE)
    (folder / "report.jsonl").touch()
    process = context.Process(target=_run, args=(script, [str(word) for word in words], folder))
    process.start()
    process.join()
    assert process.exitcode == 0, (folder / "said.txt").read_text()
    report = Report()
    for line in (folder / "report.jsonl").read_text().splitlines():
        kind, what = json.loads(line)
        getattr(report, kind).add(what)
    return report


def _run(script: str, words: list[str], folder: Path) -> None:
    with open(folder / "said.txt", "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    os.environ |= {FILE: str(folder / "report.jsonl"), "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    pretend()
    sys.argv = [str(Path(ROOT, f"{script}.py")), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")
