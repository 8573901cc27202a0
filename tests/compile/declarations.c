/* The declarations alone, twice, after macros that careless headers define. */
#define min(a, b) ((a) < (b) ? (a) : (b))
#define max(a, b) ((a) > (b) ? (a) : (b))
#define near
#define far
#define small char
#include "xguide.h"
#include "xguide.h"
int main(void) { return xg_shape4(1, 2, 3, 4).n == 1 ? 0 : 1; }
