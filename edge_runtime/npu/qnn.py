"""Sessions on Qualcomm's NPU (HTP) through onnxruntime's QNN plugin: on the phone, or simulated.

The plugin's Linux x86_64 build compiles for any HTP generation and runs the result on a
bit-accurate simulator, so an export is checked where it is made. The CPU is forbidden in every
session opened here: a graph runs on HTP as a whole, or the session is refused.
"""

from __future__ import annotations

import platform
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from edge_runtime.errors import EnvironmentFailure
from edge_runtime.npu.manifest import Coverage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PROVIDER = "QNNExecutionProvider"
_lock = threading.Lock()


def available() -> bool:
    """Whether the QNN plugin is installed for this machine."""
    try:
        import onnxruntime_qnn  # noqa: F401
    except ImportError:
        return False
    return True


def sdk_version() -> str:
    """Version of Qualcomm's SDK (QAIRT) in the plugin, whose runtime a phone has to bring.

    "unknown" where the plugin does not say.
    """
    from onnxruntime_qnn import build_and_package_info

    return str(getattr(build_and_package_info, "qnn_version", "unknown"))


def simulated() -> bool:
    """True where the plugin simulates HTP (x86_64) instead of driving one."""
    return platform.machine().lower() in ("x86_64", "amd64")


def _devices() -> list[ort.OrtEpDevice]:
    """The plugin's devices; registers the plugin with onnxruntime once a process."""
    try:
        import onnxruntime_qnn
    except ImportError as error:
        raise EnvironmentFailure(
            "npu",
            "the QNN provider is not installed",
            todo="Install it with: pip install 'costeer-edge[npu]'",
        ) from error
    with _lock:
        found = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
        if not found:
            ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
            found = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    if not found:
        raise EnvironmentFailure("npu", "the QNN provider found no device on this machine")
    return found


def htp_session(
    model: Path,
    *,
    soc_number: int,
    architecture: str,
    context: Path | None = None,
    threads: int = 1,
) -> ort.InferenceSession:
    """A session on HTP alone; with `context`, the compiled graph is also written there.

    `context` names the wrapper; its binary comes to lie beside it (`NAME_qnn.bin`). Raises
    `EnvironmentFailure` when a node would not run on HTP, or the binary is for another SoC.
    """
    import onnxruntime_qnn

    devices = _devices()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    entries = {
        # Without this a refused node runs on the CPU and nothing says so (onnxruntime#26845).
        "session.disable_cpu_ep_fallback": "1",
        "session.record_ep_graph_assignment_info": "1",
    }
    if context is not None:
        for stale in (context, context_binary(context)):
            stale.unlink(missing_ok=True)  # the compiler refuses to replace a file
        entries["ep.context_enable"] = "1"
        entries["ep.context_file_path"] = str(context)
        entries["ep.context_embed_mode"] = "0"
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    options.add_provider_for_devices(
        devices[:1], _provider_options(onnxruntime_qnn.get_qnn_htp_path(), soc_number, architecture)
    )
    try:
        return ort.InferenceSession(str(model), options)
    except Exception as error:  # the binding raises its own types, none of them documented
        raise EnvironmentFailure(
            str(model),
            f"HTP {architecture} does not take this graph: {error}",
            todo="For v68 use --target npu-qnn-w8a16; else see docs/npu.md",
        ) from error


def _provider_options(backend: str, soc_number: int, architecture: str) -> Mapping[str, str]:
    return {
        "backend_path": backend,
        "htp_arch": architecture.removeprefix("v"),
        "soc_model": str(soc_number),
        "htp_performance_mode": "burst",
    }


def context_binary(context: Path) -> Path:
    """Where onnxruntime puts the binary of the wrapper `context`."""
    return context.with_name(context.stem + "_qnn.bin")


def placement(session: ort.InferenceSession) -> list[tuple[str, str, str]]:
    """(provider, operator, node) for every node, as onnxruntime recorded it for `session`."""
    return [
        (part.ep_name, node.op_type, node.name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def coverage(nodes: Iterable[tuple[str, str, str]]) -> Coverage:
    """Counts of a `placement`, by provider and by provider and operator."""
    by_provider: Counter[str] = Counter()
    operators: dict[str, Counter[str]] = {}
    for provider, operator, _ in nodes:
        by_provider[provider] += 1
        operators.setdefault(provider, Counter())[operator] += 1
    return Coverage(
        nodes=dict(by_provider),
        operators={name: dict(kinds.most_common()) for name, kinds in operators.items()},
    )
