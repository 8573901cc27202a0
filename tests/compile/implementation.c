/* The library as one translation unit; what every test and tool links with. */
#define XG_IMPLEMENTATION
#include "xguide.h"
