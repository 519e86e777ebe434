/*
 * xstate.c: preloaded into the user-mode Linux kernel so that it runs on processors with AMX.
 *
 * User-mode Linux (6.12) keeps the floating point state of a guest process in a buffer of 2696 bytes, fixed when it is
 * compiled: enough up to AVX-512 and PKRU. The host insists that PTRACE_SETREGSET(NT_X86_XSTATE) brings the state whole,
 * and with AMX the whole is about 11 KiB, so the first context switch fails with EFAULT and the guest dies.
 *
 * This wrapper of ptrace() stands between the two. Reading: take all that the host has, hand on the part that fits.
 * Writing: put the caller's part in front of zeroes, and send the host its own length. The zeroes lose nothing: the tail
 * is AMX tile data, XSTATE_BV in the part that was kept says "initial state" for it, and it always does, since a process
 * may use AMX only after arch_prctl(ARCH_REQ_XCOMP_PERM), which the guest's kernel does not know.
 *
 * On a processor whose state fits, every call goes straight through. One thread of the kernel traces all processes,
 * hence the plain static buffers.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <linux/ptrace.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

#define STATE_MAX 65536 /* far above any state that exists: CPUID leaf 0xd gives 11008 bytes with AMX */

typedef long ptrace_fn(long request, pid_t pid, void *addr, void *data);

static _Alignas(64) unsigned char from_host[STATE_MAX];
static _Alignas(64) unsigned char to_host[STATE_MAX]; /* never written beyond a caller's length: its tail stays zero */
static size_t host_len;                               /* what the host calls the whole; 0 until the first read */

static long read_all(ptrace_fn *real, pid_t pid)
{
	struct iovec whole = { from_host, sizeof from_host };
	long r = real(PTRACE_GETREGSET, pid, (void *)(uintptr_t)NT_X86_XSTATE, &whole);

	if (r == 0)
		host_len = whole.iov_len;
	return r;
}

long ptrace(long request, ...)
{
	static ptrace_fn *real;
	va_list args;

	va_start(args, request);
	pid_t pid = va_arg(args, pid_t);
	void *addr = va_arg(args, void *);
	void *data = va_arg(args, void *);
	va_end(args);

	if (!real)
		real = (ptrace_fn *)dlsym(RTLD_NEXT, "ptrace");

	int is_state = (request == PTRACE_GETREGSET || request == PTRACE_SETREGSET) && addr == (void *)(uintptr_t)NT_X86_XSTATE;
	if (!is_state)
		return real(request, pid, addr, data);

	struct iovec *caller = data;
	if (host_len == 0 && read_all(real, pid) != 0)
		return -1;
	if (host_len <= caller->iov_len)
		return real(request, pid, addr, data);

	if (request == PTRACE_GETREGSET) {
		if (read_all(real, pid) != 0)
			return -1;
		memcpy(caller->iov_base, from_host, caller->iov_len);
		return 0;
	}
	memcpy(to_host, caller->iov_base, caller->iov_len);
	struct iovec whole = { to_host, host_len };
	return real(PTRACE_SETREGSET, pid, addr, &whole);
}
