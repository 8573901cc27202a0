/* Included again after the implementation: nothing is defined twice. */
#define XG_IMPLEMENTATION
#include "xguide.h"
#include "xguide.h"
int main(void) { return xg_shape4(1, 2, 3, 4).n == 1 ? 0 : 1; }
