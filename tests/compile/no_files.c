/* Without files and without SIMD: for small platforms. */
#define XG_NO_STDIO
#define XG_NO_SIMD
#define XG_IMPLEMENTATION
#include "xguide.h"
int main(void) { return xg_shape4(1, 2, 3, 4).n == 1 ? 0 : 1; }
