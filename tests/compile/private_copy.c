/* A private copy: everything static, and no warning about what is not called. */
#define XG_STATIC
#define XG_IMPLEMENTATION
#include "xguide.h"
int main(void) { return xg_shape4(1, 2, 3, 4).n == 1 ? 0 : 1; }
