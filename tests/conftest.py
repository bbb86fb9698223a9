"""What every test stands on: no network, one thread, a cache of its own, and skips that give their reason."""

from __future__ import annotations

import os
import shutil
import tempfile

# Before torch or the hub client is imported by any test module.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several workers share few cores; one thread each is fastest
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_home = tempfile.mkdtemp(prefix="kinema-tests-")
os.environ["HF_HOME"] = os.path.join(_home, "huggingface")
os.environ["XDG_CACHE_HOME"] = os.path.join(_home, "cache")
os.environ["KINEMA_CACHE"] = os.path.join(_home, "kinema")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("kinema", deadline=None, database=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("kinema")

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


def pytest_unconfigure() -> None:
    shutil.rmtree(_home, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("browser") and CHROMIUM is None:
            item.add_marker(pytest.mark.skip(reason="no Chromium on this machine (apt-get install chromium)"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no accelerator on this machine"))


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())


@pytest.fixture
def chromium() -> str:
    """The path of a headless-capable Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    return CHROMIUM


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Keeps torch to one thread once it is imported, so that two test workers do not fight over two cores."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
