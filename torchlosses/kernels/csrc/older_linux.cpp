// What newer C++ headers ask of libstdc++ and glibc, and older ones do not have: see older_linux.h.

#include <new>
#include <sstream>

#if defined(__GLIBC__) && defined(__GLIBCXX__)

// 0: count the owners of a shared_ptr atomically, in every process.
extern "C" {
char __libc_single_threaded __attribute__((visibility("hidden"))) = 0;
}

namespace std {
void __throw_bad_array_new_length() { throw std::bad_array_new_length(); }
}  // namespace std

template std::ostringstream::basic_ostringstream();
template std::stringstream::basic_stringstream();

#endif
