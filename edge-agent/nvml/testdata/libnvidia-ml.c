// A driver's library with two GPUs and as few functions as a very old one has.
// Built by the tests; FAULT is what it does when it is asked for temperatures:
// 0 answers, 1 crashes, 2 hangs, 3 says that the second GPU is lost.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef FAULT
#define FAULT 0
#endif

typedef struct { int index; } *device;
static struct { int index; } devices[2] = {{0}, {1}};
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { char old[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci;

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { snprintf(out, n, "390.157"); return 0; }
int nvmlSystemGetCudaDriverVersion(int *out) { *out = 9010; return 0; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, device *out) { *out = (device)&devices[i]; return 0; }
int nvmlDeviceGetUUID(device d, char *out, unsigned n) { snprintf(out, n, "GPU-0000000%d-0000-4000-8000-000000000000", d->index); return 0; }
int nvmlDeviceGetName(device d, char *out, unsigned n) { snprintf(out, n, "Tesla K80"); return 0; }
int nvmlDeviceGetBrand(device d, unsigned *out) { *out = 2; return 0; }
int nvmlDeviceGetMemoryInfo(device d, memory *out) { out->total = 12ull << 30; out->used = 1 << 20; out->free = out->total - out->used; return 0; }
int nvmlDeviceGetCudaComputeCapability(device d, int *major, int *minor) { *major = 3; *minor = 7; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(device d, unsigned *out) { *out = 149000; return 0; }
int nvmlDeviceGetTemperatureThreshold(device d, int kind, unsigned *out) { *out = 88; return 0; }
int nvmlDeviceGetPciInfo_v3(device d, pci *out) { memset(out, 0, sizeof *out); out->bus = 0x84 + d->index; return 0; }
int nvmlDeviceGetMinorNumber(device d, unsigned *out) { *out = d->index; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, device *out) { *out = (device)&devices[uuid[11] - '0']; return 0; }
int nvmlDeviceGetUtilizationRates(device d, utilization *out) { out->gpu = 42; out->memory = 7; return 0; }
int nvmlDeviceGetPowerUsage(device d, unsigned *out) { *out = 60500; return 0; }
int nvmlDeviceGetFanSpeed(device d, unsigned *out) { return 3; }
int nvmlDeviceGetClockInfo(device d, int kind, unsigned *out) { *out = kind == 1 ? 875 : 2505; return 0; }
int nvmlDeviceGetTemperature(device d, int kind, unsigned *out) {
#if FAULT == 1
	*(volatile int *)0 = 1;
#elif FAULT == 2
	for (;;) pause();
#elif FAULT == 3
	if (d->index == 1) return 15;
#endif
	*out = 61;
	return 0;
}
