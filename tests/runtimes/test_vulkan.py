"""Vulkan's GPUs: which one IREE's real runtime opens, where a laptop has an integrated one, a card and llvmpipe."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentc.runtimes import iree as module
from latentc.runtimes import vulkan
from latentc.runtimes.iree import IREE
from latentc.runtimes.vulkan import VulkanGpu

CARD = VulkanGpu("Radeon RX 7900 XTX", "discrete", "radv Mesa 26.1.2 0x6801002", "01" * 16)
INSIDE = VulkanGpu("Radeon Graphics", "integrated", "radv Mesa 26.1.2 0x6801002", "00" * 16)
ON_CPU = VulkanGpu("llvmpipe", "cpu", "llvmpipe Mesa 26.1.2 0x1", "02" * 16)

FAKE = r"""
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef struct { uint32_t type; void *next; } head;
static int handles[3];
static const uint32_t kinds[3] = {KINDS};
static uint32_t word(int value) { return (uint32_t)value; }
static void put(void *at, int offset, uint32_t value) { memcpy((char *)at + offset, &value, 4); }
static int none(void) { return 0; }
int vkEnumerateInstanceVersion(uint32_t *version) { *version = 1u << 22 | 3u << 12; return 0; }
int vkEnumerateInstanceExtensionProperties(const char *layer, uint32_t *count, void *out) { *count = 0; return 0; }
int vkEnumerateInstanceLayerProperties(uint32_t *count, void *out) { *count = 0; return 0; }
int vkEnumerateDeviceExtensionProperties(void *device, const char *layer, uint32_t *count, void *out) {
    *count = 0; return 0;
}
int vkCreateInstance(const void *info, const void *callbacks, void **out) { *out = handles; return 0; }
void vkDestroyInstance(void *instance, const void *callbacks) {}
int vkEnumeratePhysicalDevices(void *instance, uint32_t *count, void **out) {
    if (out) for (uint32_t i = 0; i < *count && i < 3; i++) out[i] = &handles[i];
    *count = 3; return 0;
}
void vkGetPhysicalDeviceProperties2(int *device, head *out) {
    int which = device - handles;
    put(out, 16, 1u << 22 | 3u << 12); put(out, 20, 0x6801002); put(out, 32, kinds[which]);
    snprintf((char *)out + 36, 256, "GPU %d", which);
    for (head *one = out->next; one; one = one->next) {
        if (one->type == 1000071004) memset((char *)one + 16, which, 16);
        if (one->type == 1000196000) { strcpy((char *)one + 20, "radv"); strcpy((char *)one + 276, "Mesa 26.1.2"); }
    }
}
void vkGetPhysicalDeviceFeatures2(int *device, head *out) {
    for (head *one = out->next; one; one = one->next) {
        int fields = one->type == 51 ? 47 : one->type == 53 ? 15 : 0;
        for (int i = 0; i < fields; i++) put(one, 16 + 4 * i, 1);
    }
}
void vkGetPhysicalDeviceQueueFamilyProperties2(int *device, uint32_t *count, head *out) {
    *count = 1;
    if (out) { put(out, 16, 6); put(out, 20, 1); put(out, 24, 64); }
}
void vkGetPhysicalDeviceMemoryProperties2(int *device, head *out) {
    put(out, 16, 1); put(out, 20, 15); put(out, 276, 1); put(out, 280, 1u << 30);
}
int vkCreateDevice(int *device, const void *info, const void *callbacks, void **out) {
    FILE *file = fopen(getenv("OPENED"), "w"); fprintf(file, "%d", (int)(device - handles)); fclose(file); _exit(0);
}
void *vkGetInstanceProcAddr(void *instance, const char *name) {
    void *own = dlopen(getenv("IREE_HAL_VULKAN_LIBVULKAN_PATH"), RTLD_NOW);
    void *found = dlsym(own, name);
    return found ? found : (void *)none;
}
"""
OPEN = """
import sys
import iree.runtime as runtime
from latentc.runtimes import vulkan
from latentc.runtimes.iree import IREE, _place
device = sys.argv[1]
print([(gpu.name, gpu.kind, gpu.driver) for gpu in vulkan.gpus()])
print(IREE().missing(device), IREE().device(device), IREE().drivers(device), _place(device), flush=True)
runtime.Config(_place(device))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("device", "opened"), [("Vulkan", 1), ("Vulkan:0", 0)])
def test_irees_own_runtime_opens_the_card_or_the_named_gpu(tmp_path, device, opened):
    """Its real runtime, on a Vulkan that only describes three GPUs: the call that opens one notes which, and ends."""
    pytest.importorskip("iree.runtime")
    library = tmp_path / "libvulkan.so"
    (tmp_path / "fake.c").write_text(FAKE.replace("KINDS", "1, 2, 4"))  # integrated, discrete, CPU
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, tmp_path / "fake.c", "-ldl"], check=True)
    places = {"IREE_HAL_VULKAN_LIBVULKAN_PATH": str(library), "OPENED": str(tmp_path / "opened")}
    command = [sys.executable, "-c", OPEN, device]
    done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, check=True)
    driver = "radv Mesa 26.1.2 0x6801002"
    listed, chosen = done.stdout.splitlines()
    kinds = ("integrated", "discrete", "cpu")
    assert listed == str([(f"GPU {number}", kind, driver) for number, kind in enumerate(kinds)]), done.stderr
    path = f"vulkan://GPU-{f'{opened:02x}' * 16}"
    assert chosen == f"None {{'gpu': 'GPU {opened}'}} {{'vulkan': '{driver}'}} {path}", done.stderr
    assert (tmp_path / "opened").read_text() == str(opened)


def has(monkeypatch, *gpus):
    monkeypatch.setattr(module, "_vulkan_gpus", lambda: gpus)
    monkeypatch.setattr(vulkan, "gpus", lambda: gpus)
    monkeypatch.setattr(module, "_runtime", lambda: None)
    return IREE()


def test_which_gpu_is_meant(monkeypatch):
    adapter = has(monkeypatch, INSIDE, CARD, ON_CPU)
    assert adapter.missing("Vulkan") is None
    assert adapter.device("Vulkan") == {"gpu": CARD.name}, "only the opened one's name is in the key"
    assert adapter.drivers("Vulkan:0") == {"vulkan": INSIDE.driver}
    assert adapter.precisions("Vulkan:1") == ("f32",)
    assert adapter.missing("Vulkan:3") == (
        "Vulkan has no GPU with number 3; it has: Vulkan:0 (Radeon Graphics, integrated), "
        "Vulkan:1 (Radeon RX 7900 XTX, discrete), Vulkan:2 (llvmpipe, cpu)."
    )
    assert adapter.missing("gfx942:1") == "This machine has no gfx942 GPU; AMD GPUs found: none."
    assert adapter.missing("CPU:1") == "IREE's CPU has no number. Write device = 'CPU'."
    adapter = has(monkeypatch, CARD, CARD)
    assert "Vulkan has several GPUs: Vulkan:0 (Radeon RX 7900 XTX, " in (adapter.missing("Vulkan") or "")
    assert adapter.missing("Vulkan:1") is None


def test_of_two_drivers_of_a_gpu_the_first_is_meant(monkeypatch):
    """IREE opens the first device with an address (vulkan_driver.cc), and an update of its driver must be seen."""
    listed = (CARD, INSIDE, replace(CARD, driver="AMD proprietary driver 0x800"))
    named = [{"path": f"GPU-{gpu.uuid}", "name": gpu.name} for gpu in listed]
    driver = SimpleNamespace(query_available_devices=lambda: named)
    monkeypatch.setattr(vulkan, "gpus", lambda: listed)
    monkeypatch.setattr(module, "_runtime", lambda: SimpleNamespace(get_driver=lambda _: driver))
    assert module._vulkan_gpus.__wrapped__() == (CARD, INSIDE)


def test_the_loader_may_be_named_by_its_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(vulkan.platform, "system", lambda: "Linux")
    monkeypatch.setenv(vulkan.LIBRARY, str(tmp_path))
    assert vulkan._loader() == str(tmp_path / "libvulkan.so.1")
    monkeypatch.setenv(vulkan.LIBRARY, "/opt/libvulkan.so")
    assert vulkan._loader() == "/opt/libvulkan.so"


def test_a_gpu_that_the_user_cannot_open_is_said_instead_of_a_missing_driver(monkeypatch, tmp_path):
    (tmp_path / "dev/dri").mkdir(parents=True)
    (tmp_path / "dev/dri/renderD128").touch()
    real = vulkan.shut
    monkeypatch.setattr(vulkan, "shut", lambda pattern: real(pattern, tmp_path))
    assert has(monkeypatch).missing("Vulkan") == "Vulkan finds no GPU: install the GPU's Vulkan driver."
    monkeypatch.setenv("VK_DRIVER_FILES", "lvp_icd.json")
    assert has(monkeypatch, ON_CPU).missing("Vulkan") is None, "it was chosen"
    monkeypatch.delenv("VK_DRIVER_FILES")
    only = has(monkeypatch, ON_CPU).missing("Vulkan") or ""
    assert only.startswith("Vulkan has only llvmpipe, which computes on the CPU: install the GPU's Vulkan driver, or")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "renderD128")
    refused = f"this user cannot open {tmp_path / 'dev/dri/renderD128'}. Add the user to the group"
    assert (has(monkeypatch).missing("Vulkan") or "").startswith(f"Vulkan finds no GPU: {refused}")
    on_cpu = has(monkeypatch, ON_CPU).missing("Vulkan") or ""
    assert on_cpu.startswith(f"Vulkan has only llvmpipe, which computes on the CPU: {refused}")
    assert has(monkeypatch, INSIDE, ON_CPU).missing("Vulkan") is None
