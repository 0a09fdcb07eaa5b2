// Adds two vectors on the first GPU and checks each sum, by the driver's
// library alone: nothing of the CUDA toolkit is needed to build or run it.
// It says what failed and ends with 1, so a container without a GPU shows why.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static const char *ptx =
	".version 6.0\n.target sm_50\n.address_size 64\n"
	".visible .entry vectoradd(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n) {\n"
	"  .reg .pred %p<2>; .reg .f32 %f<4>; .reg .b32 %r<6>; .reg .b64 %d<8>;\n"
	"  ld.param.u64 %d1, [a]; ld.param.u64 %d2, [b]; ld.param.u64 %d3, [c]; ld.param.u32 %r1, [n];\n"
	"  mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;\n"
	"  mad.lo.s32 %r5, %r2, %r3, %r4;\n"
	"  setp.ge.u32 %p1, %r5, %r1; @%p1 bra DONE;\n"
	"  cvta.to.global.u64 %d1, %d1; cvta.to.global.u64 %d2, %d2; cvta.to.global.u64 %d3, %d3;\n"
	"  mul.wide.u32 %d4, %r5, 4; add.s64 %d5, %d1, %d4; add.s64 %d6, %d2, %d4; add.s64 %d7, %d3, %d4;\n"
	"  ld.global.f32 %f1, [%d5]; ld.global.f32 %f2, [%d6]; add.f32 %f3, %f1, %f2; st.global.f32 [%d7], %f3;\n"
	"DONE: ret;\n}\n";

typedef unsigned long long pointer;

static void *lib;

static void *find(const char *name)
{
	void *f = dlsym(lib, name);
	if (!f) {
		printf("libcuda.so.1 has no %s\n", name);
		exit(1);
	}
	return f;
}

// must calls a function of the driver and ends where it fails.
#define must(name, types, ...) do { \
	int code = ((int (*)types)find(name))(__VA_ARGS__); \
	if (code) { printf("%s: CUDA error %d\n", name, code); exit(1); } \
} while (0)

enum { N = 1 << 20 };
static float a[N], b[N], c[N];

static void check(const char *gpu)
{
	for (int i = 0; i < N; i++)
		if (c[i] != a[i] + b[i]) {
			printf("sum %d on %s is %g, not %g\n", i, gpu, c[i], a[i] + b[i]);
			exit(1);
		}
	printf("%d sums on %s are right\n", N, gpu);
}

int main(void)
{
	lib = dlopen("libcuda.so.1", RTLD_NOW);
	if (!lib) {
		printf("%s\n", dlerror());
		return 1;
	}
	int device, count = 0, n = N;
	char gpu[256];
	void *context, *module, *kernel;
	pointer da, db, dc;
	must("cuInit", (unsigned), 0);
	must("cuDeviceGetCount", (int *), &count);
	must("cuDeviceGet", (int *, int), &device, 0);
	must("cuDeviceGetName", (char *, int, int), gpu, sizeof gpu, device);
	must("cuDevicePrimaryCtxRetain", (void **, int), &context, device);
	must("cuCtxSetCurrent", (void *), context);
	must("cuModuleLoadData", (void **, const void *), &module, ptx);
	must("cuModuleGetFunction", (void **, void *, const char *), &kernel, module, "vectoradd");
	must("cuMemAlloc_v2", (pointer *, size_t), &da, sizeof a);
	must("cuMemAlloc_v2", (pointer *, size_t), &db, sizeof b);
	must("cuMemAlloc_v2", (pointer *, size_t), &dc, sizeof c);
	for (int i = 0; i < N; i++) {
		a[i] = rand() % 1000;
		b[i] = rand() % 1000;
		c[i] = -1;
	}
	must("cuMemcpyHtoD_v2", (pointer, const void *, size_t), da, a, sizeof a);
	must("cuMemcpyHtoD_v2", (pointer, const void *, size_t), db, b, sizeof b);
	must("cuMemcpyHtoD_v2", (pointer, const void *, size_t), dc, c, sizeof c);
	void *args[] = {&da, &db, &dc, &n};
	must("cuLaunchKernel", (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **),
	     kernel, N / 256, 1, 1, 256, 1, 1, 0, NULL, args, NULL);
	must("cuCtxSynchronize", (void));
	must("cuMemcpyDtoH_v2", (void *, pointer, size_t), c, dc, sizeof c);
	printf("%d GPU(s); ", count);
	check(gpu);
	return 0;
}
