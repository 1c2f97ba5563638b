// Included before every source: lets a library that is built on a new Linux load on an older one.
//
// glibc gives a few functions a new version beside the old one, and the linker takes the newest. The versions named
// here are those of the oldest glibc for the processor; older_linux.cpp has what libstdc++ has added.

#pragma once

#ifdef __linux__
#include <features.h>
#endif

#ifdef __GLIBC__
#if defined(__x86_64__)
#define TORCHLOSSES_OLDEST "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define TORCHLOSSES_OLDEST "GLIBC_2.17"
#endif
#endif

#ifdef TORCHLOSSES_OLDEST
__asm__(".symver dlsym, dlsym@" TORCHLOSSES_OLDEST);
__asm__(".symver exp, exp@" TORCHLOSSES_OLDEST);
__asm__(".symver exp2, exp2@" TORCHLOSSES_OLDEST);
__asm__(".symver log, log@" TORCHLOSSES_OLDEST);
__asm__(".symver log2, log2@" TORCHLOSSES_OLDEST);
__asm__(".symver pow, pow@" TORCHLOSSES_OLDEST);
#endif
