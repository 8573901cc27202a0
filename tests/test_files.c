/* test_files.c - npy, safetensors and checkpoints: what is written is read back bit by bit, every
 * number format against its definition, real files, and files that mean harm. A refused file must
 * leave its store as it was. Files in memory have just their size: a sanitizer sees one byte too
 * many. */
#include "rising.h"
#include "test.h"
#include <sys/stat.h>
#include <unistd.h>

/* ---- helpers --------------------------------------------------------------------------------- */

enum { NAME_MAX_ = 512 };
static char folder[64];

/* A file in a folder of this run's own, made on first use and removed at the end. */
static const char *in_folder(const char *name)
{
    static char path[NAME_MAX_];
    if (!folder[0]) {
        const char *top = getenv("TMPDIR");
        snprintf(folder, sizeof folder, "%.30s/xguide_XXXXXX", top ? top : "/tmp");
        REQUIRE(mkdtemp(folder) != NULL);
    }
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void remove_folder(void)
{
    static const char *const names[] = { "a.safetensors", "b.safetensors", "x.npy", "resume" };
    for (size_t i = 0; folder[0] && i < sizeof names / sizeof names[0]; i++) {
        remove(in_folder(names[i]));
    }
    if (folder[0]) rmdir(folder);
}

static bool exists(const char *path)
{
    struct stat unused;
    return lstat(path, &unused) == 0;
}

/* A whole file, to be freed; NULL when there is none. */
static unsigned char *slurp(const char *path, size_t *count)
{
    FILE *file = fopen(path, "rb");
    *count = 0;
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    *count = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = (unsigned char *)malloc(*count + 1);
    if (bytes && fread(bytes, 1, *count, file) != *count) *count = 0;
    fclose(file);
    return bytes;
}

static void spill(const char *path, const void *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL);
    CHECK(fwrite(bytes, 1, count, file) == count);
    CHECK(fclose(file) == 0);
}

/* header length, header, and `data` bytes 11, 48, 85, ... in memory of just that size. */
static unsigned char *make_file(const char *header, size_t data, size_t *count)
{
    const size_t length = strlen(header);
    *count = 8 + length + data;
    unsigned char *bytes = (unsigned char *)malloc(*count);
    REQUIRE(bytes != NULL);
    for (size_t i = 0; i < 8; i++) bytes[i] = (unsigned char)(i < 4 ? length >> 8 * i & 255 : 0);
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < data; i++) bytes[8 + length + i] = (unsigned char)(i * 37 + 11);
    return bytes;
}

static xg_code parse(xg_params *store, const char *header, size_t data, const xg_load_options *o,
                     xg_load_report *report)
{
    size_t count;
    unsigned char *bytes = make_file(header, data, &count);
    const xg_code code = xg_params_parse(store, bytes, count, o, report);
    free(bytes);
    return code;
}

/* A store with one entry of sevens. */
static xg_params *sevens(const char *name, xg_shape s)
{
    xg_params *store = xg_params_new(NULL);
    REQUIRE(store != NULL);
    const int at = xg_params_add(store, name, s, true);
    REQUIRE(at == 0);
    for (size_t i = 0; i < xg_shape_size(s); i++) xg_params_data(store, at)[i] = 7;
    return store;
}

static bool still_sevens(xg_params *store)
{
    bool same = xg_params_count(store) == 1;
    for (size_t i = 0; same && i < xg_shape_size(xg_params_shape(store, 0)); i++) {
        same = xg_params_data(store, 0)[i] == (xg_real)7;
    }
    return same;
}

/* Names, shapes, kinds and bits. */
static bool stores_equal(xg_params *a, xg_params *b)
{
    bool same = xg_params_count(a) == xg_params_count(b);
    for (int i = 0; same && i < xg_params_count(a); i++) {
        const int k = xg_params_find(b, xg_params_name(a, i));
        same = k >= 0 && xg_shape_same(xg_params_shape(a, i), xg_params_shape(b, k))
            && xg_params_trainable(a, i) == xg_params_trainable(b, k)
            && !memcmp(xg_params_data(a, i), xg_params_data(b, k),
                       xg_shape_size(xg_params_shape(a, i)) * sizeof(xg_real));
    }
    return same;
}

static const xg_load_options strictly = { false, false, NULL };
static const xg_load_options leniently = { true, false, NULL };
static const xg_load_options creating = { false, true, NULL };

/* ---- number formats -------------------------------------------------------------------------- */

static void put_little(unsigned char *out, uint64_t bits, size_t size)
{
    for (size_t i = 0; i < size; i++) out[i] = (unsigned char)(bits >> 8 * i & 255);
}

/* Loads `count` numbers of a type as tensor "t" of a new store. */
static xg_params *load_type(const char *type, size_t size, const uint64_t *bits, int count)
{
    char header[160];
    size_t bytes;
    snprintf(header, sizeof header, "{\"t\":{\"dtype\":\"%s\",\"shape\":[%d],"
             "\"data_offsets\":[0,%d]}}", type, count, count * (int)size);
    unsigned char *file = make_file(header, (size_t)count * size, &bytes);
    for (int i = 0; i < count; i++) {
        put_little(file + bytes - (size_t)(count - i) * size, bits[i], size);
    }
    xg_params *store = xg_params_new(NULL);
    CHECK(xg_params_parse(store, file, bytes, &creating, NULL) == XG_ERR_OK);
    free(file);
    REQUIRE(xg_params_count(store) == 1);
    return store;
}

/* All 65536 of them against (-1)^s 2^(e-15) (1 + m/1024). */
static void test_half_precision(void)
{
    uint64_t *bits = (uint64_t *)malloc(65536 * sizeof *bits);
    REQUIRE(bits != NULL);
    for (int i = 0; i < 65536; i++) bits[i] = (uint64_t)i;
    xg_params *store = load_type("F16", 2, bits, 65536);
    const xg_real *x = xg_params_data(store, 0);
    int wrong = 0;
    for (int i = 0; i < 65536; i++) {
        const int e = i >> 10 & 31, m = i & 1023;
        double y = e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
        if (e == 31) y = m ? NAN : INFINITY;
        if (i & 0x8000) y = -y;
        const bool sign = !signbit(x[i]) == !signbit(y);
        wrong += y != y ? x[i] == x[i] : (double)x[i] != y || !sign;
    }
    CHECK(wrong == 0);
    xg_params_free(store);
    free(bits);
}

static void test_number_formats(void)
{
    static const struct { const char *type; size_t size; uint64_t bits[4]; double value[4]; } c[] =
    {
        { "F64", 8, { 0x3ff8000000000000, 0xc000000000000000, 0, 0x4059000000000000 },
          { 1.5, -2, 0, 100 } },
        { "F32", 4, { 0x3fc00000, 0xc0000000, 0x00000001, 0x42c80000 }, 
          { 1.5, -2, 1.4012984643248171e-45, 100 } },
        { "F16", 2, { 0x3e00, 0xc000, 0x0001, 0x7bff }, { 1.5, -2, 5.9604644775390625e-8, 65504 } },
        { "BF16", 2, { 0x3fc0, 0xc000, 0x42c8, 0x0080 }, { 1.5, -2, 100, 1.1754943508222875e-38 } },
        { "I64", 8, { 5, 0xffffffffffffffff, 0x8000000000000000, 0x7fffffffffffffff },
          { 5, -1, -9223372036854775808.0, 9223372036854775808.0 } },
        { "I32", 4, { 5, 0xffffffff, 0x80000000, 0x01000000 }, { 5, -1, -2147483648.0, 16777216 } },
        { "I16", 2, { 5, 0xffff, 0x8000, 0x7fff }, { 5, -1, -32768, 32767 } },
        { "I8", 1, { 5, 0xff, 0x80, 0x7f }, { 5, -1, -128, 127 } },
        { "U8", 1, { 5, 0xff, 0x80, 0x7f }, { 5, 255, 128, 127 } },
        { "BOOL", 1, { 0, 1, 1, 0 }, { 0, 1, 1, 0 } },
    };
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        xg_params *store = load_type(c[i].type, c[i].size, c[i].bits, 4);
        for (int k = 0; k < 4; k++) {
            if ((double)xg_params_data(store, 0)[k] == (double)(xg_real)c[i].value[k]) continue;
            test_fail_(__FILE__, __LINE__, c[i].type);
            printf("      number %d is %.17g\n", k, (double)xg_params_data(store, 0)[k]);
        }
        xg_params_free(store);
    }
}

/* ---- what loading reports -------------------------------------------------------------------- */

#define T_A "\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}"
#define T_B "\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[16,28]}"
#define T_FC "\"fc.weight\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[28,36]}"
#define THREE "{" T_A "," T_B "," T_FC "}"

static void test_report(void)
{
    xg_load_report r;
    xg_params *store = sevens("a", xg_shape4(2, 2, 1, 1));
    xg_params_add(store, "b", xg_shape4(4, 1, 1, 1), true);
    xg_params_add(store, "c", xg_shape4(1, 1, 1, 1), true);
    CHECK(parse(store, THREE, 36, NULL, &r) == XG_ERR_OK);
    CHECK(r.loaded == 1 && r.missing == 1 && r.unexpected == 1 && r.mismatched == 1);
    CHECK(!strcmp(r.missing_names, "c"));
    CHECK(!strcmp(r.unexpected_names, "fc.weight"));
    CHECK(!strcmp(r.mismatched_names, "b"));
    CHECK(xg_params_data(store, 0)[0] != (xg_real)7);
    CHECK(xg_params_data(store, 1)[0] == (xg_real)0);   /* a mismatch is left alone */

    const xg_load_options skip = { false, true, "fc." };
    CHECK(parse(store, THREE, 36, &skip, &r) == XG_ERR_OK);
    CHECK(r.loaded == 1 && r.unexpected == 0 && xg_params_count(store) == 3);
    CHECK(parse(store, THREE, 36, &creating, &r) == XG_ERR_OK);
    CHECK(r.loaded == 2 && r.unexpected == 0 && r.missing == 1 && xg_params_count(store) == 4);
    const int fc = xg_params_find(store, "fc.weight");
    CHECK(xg_shape_same(xg_params_shape(store, fc), xg_shape4(1, 2, 1, 1)));
    CHECK(xg_params_trainable(store, fc));
    CHECK(parse(store, THREE, 36, NULL, NULL) == XG_ERR_OK);   /* nobody has to look */
    xg_params_free(store);
}

/* Extents of 1 do not tell shapes apart; an order does. */
static void test_shapes_that_match(void)
{
    static const struct { xg_shape have; const char *file; bool match; } c[] = {
        { { 6, 1, 1, 1 }, "6", true },      { { 1, 6, 1, 1 }, "6", true },
        { { 2, 3, 1, 1 }, "2,3", true },    { { 2, 1, 1, 3 }, "2,3", true },
        { { 2, 3, 1, 1 }, "2,3,1,1", true }, { { 1, 1, 2, 3 }, "1,2,1,3", true },
        { { 2, 3, 1, 1 }, "3,2", false },   { { 2, 3, 1, 1 }, "6", false },
        { { 6, 1, 1, 1 }, "2,3", false },   { { 2, 3, 1, 1 }, "1,6", false },
    };
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        char header[128];
        xg_load_report r;
        xg_params *store = sevens("a", c[i].have);
        snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"U8\",\"shape\":[%s],"
                 "\"data_offsets\":[0,6]}}", c[i].file);
        CHECK(parse(store, header, 6, NULL, &r) == XG_ERR_OK);
        CHECK(r.loaded == (c[i].match ? 1 : 0) && r.mismatched == (c[i].match ? 0 : 1));
        CHECK(still_sevens(store) == !c[i].match);
        xg_params_free(store);
    }
}

static void test_long_lists_are_cut(void)
{
    xg_load_report r;
    xg_params *store = xg_params_new(NULL);
    for (int i = 0; i < 100; i++) {
        char name[32];
        snprintf(name, sizeof name, "layer%d.weight", i);
        xg_params_add(store, name, xg_shape4(1, 1, 1, 1), true);
    }
    CHECK(parse(store, "{}", 0, NULL, &r) == XG_ERR_OK);
    CHECK(r.missing == 100 && strlen(r.missing_names) < sizeof r.missing_names);
    CHECK(!strncmp(r.missing_names, "layer0.weight, layer1.weight, ", 30));
    CHECK(!strcmp(r.missing_names + strlen(r.missing_names) - 5, ", ..."));
    xg_params_free(store);
}

/* JSON as others may write it: spaces, order of keys, escapes; names come out as UTF-8. */
static void test_header_variants(void)
{
    xg_params *store = xg_params_new(NULL);
    CHECK(parse(store, "{ \"__metadata__\" : { } ,\n\t"
                "\"\\u0061\\\"\\\\\\/\\b\\u00e9\\uD83D\\ude00\" : { \"shape\" : [ ] , "
                "\"data_offsets\" : [ 0 , 4 ] , \"dtype\" : \"F32\" } }  \n", 4, &creating, NULL)
          == XG_ERR_OK);
    CHECK(!strcmp(xg_params_name(store, 0), "a\"\\/\b\xc3\xa9\xf0\x9f\x98\x80"));
    CHECK(xg_shape_same(xg_params_shape(store, 0), xg_shape4(1, 1, 1, 1)));
    /* The order of names need not be the order of numbers. */
    CHECK(parse(store, "{" T_B "," T_A "}", 28, &creating, NULL) == XG_ERR_OK);
    CHECK(!strcmp(xg_params_name(store, 1), "b") && !strcmp(xg_params_name(store, 2), "a"));
    xg_params_free(store);
}

/* ---- hostile safetensors --------------------------------------------------------------------- */

#define ONE(dtype, shape, offsets) \
    "{\"a\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" offsets "]}}"
#define NAMED(name) \
    "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}"
#define OK XG_ERR_OK
#define BAD XG_ERR_FORMAT
#define NOT XG_ERR_UNSUPPORTED

/* Every case has 16 bytes of numbers and meets a store with "a" [2 2]. */
static const struct hostile { const char *header; xg_code strict, lenient; } hostile[] = {
    { ONE("F32", "2,2", "0,16"), OK, OK },                              /* the honest one */
    /* JSON */
    { "{", BAD, BAD }, { "{}", BAD, OK }, { "{}}", BAD, BAD }, { "{} x", BAD, BAD },
    { "[]", BAD, BAD },
    { " {}", BAD, BAD }, { "{,}", BAD, BAD }, { "{\"a\"}", BAD, BAD }, { "{\"a\":}", BAD, BAD },
    { "{\"a\":1}", BAD, BAD }, { "{\"a\":null}", BAD, BAD }, { "{\"a\":{}}", BAD, BAD },
    { "{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}", BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16],}}", BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},}", BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\" \"shape\":[2,2],\"data_offsets\":[0,16]}}", BAD, BAD },
    { "{'a':{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}", BAD, BAD },
    /* names: escapes that are none, half a pair, text that cannot be */
    { "{\"a", BAD, BAD }, { "{\"a\\", BAD, BAD }, { "{\"a\\u12", BAD, BAD },
    { NAMED("z"), OK, OK }, { NAMED("\\ud83d\\ude00"), OK, OK },
    { NAMED("\xf0\x9f\x98\x80"), OK, OK },
    { NAMED("\\x"), BAD, BAD }, { NAMED("\\u12g4"), BAD, BAD }, { NAMED("\\U0041"), BAD, BAD },
    { NAMED("\\u0000"), BAD, BAD }, { NAMED("\\ud800"), BAD, BAD }, { NAMED("\\udc00"), BAD, BAD },
    { NAMED("\\ud800\\u0041"), BAD, BAD }, { NAMED("\\ud800\\ud800"), BAD, BAD },
    { NAMED("\\ud800\\n"), BAD, BAD }, { NAMED("\\ud800xx"), BAD, BAD },
    { NAMED("\n"), BAD, BAD }, { NAMED("\x1f"), BAD, BAD },
    /* UTF-8: a stray byte, longer than need be, half a pair, beyond Unicode, cut */
    { NAMED("\x80"), BAD, BAD }, { NAMED("\xff"), BAD, BAD }, { NAMED("\xc1\xbf"), BAD, BAD },
    { NAMED("\xe0\x9f\xbf"), BAD, BAD }, { NAMED("\xf0\x8f\xbf\xbf"), BAD, BAD },
    { NAMED("\xed\xa0\x80"), BAD, BAD }, { NAMED("\xf4\x90\x80\x80"), BAD, BAD },
    { NAMED("\xf5\x80\x80\x80"), BAD, BAD }, { NAMED("\xc3"), BAD, BAD },
    { NAMED("\xe2\x82"), BAD, BAD },
    { NAMED("\xc3z"), BAD, BAD }, { NAMED("\xf0\x9f\x98z"), BAD, BAD }, { "{\"\xe2\x82", BAD, BAD },
    { NAMED("\xc2\x80"), OK, OK }, { NAMED("\xe0\xa0\x80"), OK, OK },
    { NAMED("\xf0\x90\x80\x80"), OK, OK }, { NAMED("\xf4\x8f\xbf\xbf"), OK, OK },
    { NAMED("\xed\x9f\xbf\xee\x80\x80"), OK, OK },
    /* tensors: keys */
    { "{\"a\":{\"shape\":[2,2],\"data_offsets\":[0,16]}}", BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,16]}}", BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2]}}", BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}",
      BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16],\"more\":1}}", BAD, BAD },
    { "{\"a\":{\"dtype\":32,\"shape\":[2,2],\"data_offsets\":[0,16]}}", BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,16]}}", BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[[2,2]],\"data_offsets\":[0,16]}}", BAD, BAD },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2,],\"data_offsets\":[0,16]}}", BAD, BAD },
    /* numbers */
    { ONE("F32", "-2,-2", "0,16"), BAD, BAD }, { ONE("F32", "2.0,2", "0,16"), BAD, BAD },
    { ONE("F32", "2e0,2", "0,16"), BAD, BAD }, { ONE("F32", "02,2", "0,16"), BAD, BAD },
    { ONE("F32", "+2,2", "0,16"), BAD, BAD }, { ONE("F32", "\"2\",2", "0,16"), BAD, BAD },
    { ONE("F32", "2,2", "0"), BAD, BAD }, { ONE("F32", "2,2", "0,16,16"), BAD, BAD },
    { ONE("F32", "2,2", "-0,16"), BAD, BAD }, { ONE("F32", "2,2", "0x0,16"), BAD, BAD },
    { ONE("F32", "2,2", "0,18446744073709551616"), BAD, BAD },
    { ONE("F32", "2,2", "0,99999999999999999999999"), BAD, BAD },
    /* products that wrap around to the right size */
    { ONE("F32", "4294967296,4294967296", "0,0"), BAD, BAD },
    { ONE("F32", "9223372036854775808,2", "0,0"), BAD, BAD },
    { ONE("F32", "4611686018427387905,4", "0,16"), BAD, BAD },
    { ONE("F64", "2305843009213693954", "0,16"), BAD, BAD },
    { ONE("F32", "18446744073709551615,18446744073709551615,18446744073709551615", "0,16"),
      BAD, BAD },
    /* ranges */
    { ONE("F32", "2,2", "0,15"), BAD, BAD }, { ONE("F32", "2,2", "1,16"), BAD, BAD },
    { ONE("F32", "2,2", "0,17"), BAD, BAD }, { ONE("F32", "2,2", "16,0"), BAD, BAD },
    { ONE("F32", "2,2", "16,32"), BAD, BAD }, { ONE("F32", "2,3", "0,16"), BAD, BAD },
    { ONE("F64", "2,2", "0,16"), BAD, BAD }, { ONE("U8", "2,2", "0,16"), BAD, BAD },
    { ONE("F32", "2,2", "18446744073709551600,18446744073709551615"), BAD, BAD },
    { ONE("F32", "2,2", "18446744073709551608,8"), BAD, BAD },
    { ONE("F16", "2,2", "0,8"), BAD, OK },                              /* 8 bytes left over */
    { ONE("F16", "2,2", "8,16"), BAD, OK },                             /* a gap before it */
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[0,4]},"
      "\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[8,16]}}", BAD, OK },    /* between */
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[0,4]},"
      "\"b\":{\"dtype\":\"U8\",\"shape\":[13],\"data_offsets\":[3,16]}}", BAD, BAD },  /* overlap */
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
      "\"b\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}", BAD, BAD },  /* same */
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
      "\"b\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[8,8]}}", BAD, BAD },  /* within */
    /* names */
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[0,4]},"
      "\"a\":{\"dtype\":\"U8\",\"shape\":[12],\"data_offsets\":[4,16]}}", BAD, BAD },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[0,4]},"
      "\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[12],\"data_offsets\":[4,16]}}", BAD, BAD },
    /* metadata */
    { "{\"__metadata__\":{\"k\":1}," T_A "}", BAD, BAD },
    { "{\"__metadata__\":[]," T_A "}", BAD, BAD },
    { "{\"__metadata__\":null," T_A "}", BAD, BAD },
    { "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}," T_A "}", BAD, BAD },
    { "{\"__metadata__\":{},\"__metadata__\":{}," T_A "}", BAD, BAD },
    { "{\"__metadata__\":{\"k\":{\"l\":\"m\"}}," T_A "}", BAD, BAD },
    /* sound, but not for us */
    { ONE("F8_E4M3", "16", "0,16"), NOT, NOT }, { ONE("U64", "2", "0,16"), NOT, NOT },
    { ONE("f32", "2,2", "0,16"), NOT, NOT }, { ONE("", "2,2", "0,16"), NOT, NOT },
    { ONE("F32", "1,1,2,1,2", "0,16"), NOT, NOT },
    { "{" T_A ",\"z\":{\"dtype\":\"F8_E4M3\",\"shape\":[0],\"data_offsets\":[16,16]}}", NOT, OK },
    { "{" T_A ",\"z\":{\"dtype\":\"F32\",\"shape\":[1,0,1,1,1],\"data_offsets\":[16,16]}}",
      OK, OK },
    { "{" T_A ",\"z\":{\"dtype\":\"F32\",\"shape\":[9999999999,0],\"data_offsets\":[16,16]}}",
      OK, OK },
};

static void test_hostile_headers(void)
{
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        for (int lenient = 0; lenient < 2; lenient++) {
            const xg_code expected = lenient ? hostile[i].lenient : hostile[i].strict;
            xg_load_report r;
            xg_params *store = sevens("a", xg_shape4(2, 2, 1, 1));
            const xg_code code = parse(store, hostile[i].header, 16,
                                       lenient ? &leniently : &strictly, &r);
            if (code != expected) {
                test_fail_(__FILE__, __LINE__, hostile[i].header);
                printf("      got %s, expected %s: %s\n", xg_code_name(code),
                       xg_code_name(expected), xg_params_error(store)->text);
            }
            CHECK_ERROR(xg_params_error(store), code);
            if (code != OK) CHECK(still_sevens(store) && r.loaded == 0 && r.unexpected == 0);
            xg_params_free(store);
        }
    }
}

/* The eight bytes in front, and files that end early: every length of a good file. */
static void test_hostile_lengths(void)
{
    static const uint64_t lengths[] = { 0, 1, 3, 56, 58, 1000, 100000000, 100000001, 0x7fffffff,
                                        0x80000000, 0xffffffff, 0x7fffffffffffffff,
                                        0x8000000000000000, 0xfffffffffffffff8,
                                        0xffffffffffffffff };
    size_t count;
    unsigned char *file = make_file(ONE("F32", "2,2", "0,16"), 16, &count);
    REQUIRE(count == 8 + 57 + 16);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        xg_params *store = sevens("a", xg_shape4(2, 2, 1, 1));
        put_little(file, lengths[i], 8);
        CHECK(xg_params_parse(store, file, count, &leniently, NULL) == BAD && still_sevens(store));
        xg_params_free(store);
    }
    put_little(file, 57, 8);
    for (size_t cut = 0; cut < count; cut++) {
        unsigned char *part = (unsigned char *)malloc(cut ? cut : 1);
        REQUIRE(part != NULL);
        memcpy(part, file, cut);
        xg_params *store = sevens("a", xg_shape4(2, 2, 1, 1));
        CHECK(xg_params_parse(store, part, cut, &strictly, NULL) == BAD && still_sevens(store));
        CHECK_ERROR(xg_params_error(store), BAD);
        xg_params_free(store);
        free(part);
    }
    xg_params *store = sevens("a", xg_shape4(2, 2, 1, 1));
    CHECK(xg_params_parse(store, NULL, 100, &strictly, NULL) == BAD);
    CHECK(xg_params_parse(store, file, count, &strictly, NULL) == BAD);   /* errors stick */
    CHECK(still_sevens(store));
    xg_params_clear_error(store);
    CHECK(xg_params_parse(store, file, count, &strictly, NULL) == OK && !still_sevens(store));
    xg_params_free(store);
    free(file);
}

/* A wanted tensor that cannot be had; the same one unused is no matter. */
static void test_unsupported_only_if_used(void)
{
    static const char *const header = "{" T_A ",\"z\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],"
        "\"data_offsets\":[16,20]},\"y\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],"
        "\"data_offsets\":[20,24]}}";
    const xg_load_options make = { true, true, NULL }, skip = { true, true, "z" };
    xg_params *store = sevens("a", xg_shape4(2, 2, 1, 1));
    CHECK(parse(store, header, 24, &leniently, NULL) == OK && !still_sevens(store));
    xg_params_free(store);
    store = sevens("a", xg_shape4(2, 2, 1, 1));
    CHECK(parse(store, header, 24, &make, NULL) == NOT && still_sevens(store));
    xg_params_clear_error(store);
    CHECK(parse(store, header, 24, &skip, NULL) == NOT && still_sevens(store));   /* y */
    xg_params_clear_error(store);
    CHECK(parse(store, "{\"\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, &make,
                NULL) == NOT && still_sevens(store));
    xg_params_free(store);
}

/* Many tensors in an order that is the worst for naive sorting and searching. */
static void test_many_tensors(void)
{
    enum { MANY = 20000 };
    char *header = (char *)malloc(MANY * 80 + 8);
    size_t used = 1;
    REQUIRE(header != NULL);
    header[0] = '{';
    for (int i = MANY - 1; i >= 0; i--) {
        used += (size_t)sprintf(header + used, "\"t%05d\":{\"dtype\":\"U8\",\"shape\":[1],"
                                "\"data_offsets\":[%d,%d]}%c", i, i, i + 1, i ? ',' : '}');
    }
    xg_load_report r;
    xg_params *store = sevens("t00123", xg_shape4(1, 1, 1, 1));
    CHECK(parse(store, header, MANY, NULL, &r) == OK);
    CHECK(r.loaded == 1 && r.unexpected == MANY - 1);
    CHECK(xg_params_data(store, 0)[0] == (xg_real)((123 * 37 + 11) & 255));
    xg_params_free(store);
    free(header);
}

/* ---- mutation -------------------------------------------------------------------------------- */

static int rounds(int full) { return in_short_mode() ? full / 10 : full; }

/* A copy with a few bytes changed, or cut, in memory of its own size. */
static unsigned char *mutate(const unsigned char *bytes, size_t *count, xg_rng *rng)
{
    static const unsigned char favourites[] = "\"\\{}[]:,0129\x00\xff\x80 a(')TF<>";
    const size_t keep = xg_rng_below(rng, 4) ? *count : (size_t)xg_rng_below(rng, (int)*count + 1);
    unsigned char *copy = (unsigned char *)malloc(keep ? keep : 1);
    REQUIRE(copy != NULL);
    memcpy(copy, bytes, keep);
    for (int changes = xg_rng_below(rng, 4); keep > 0 && changes >= 0; changes--) {
        unsigned char *at = &copy[xg_rng_below(rng, (int)keep)];
        switch (xg_rng_below(rng, 3)) {
        case 0: *at = (unsigned char)(*at ^ 1 << xg_rng_below(rng, 8)); break;
        case 1: *at = favourites[xg_rng_below(rng, (int)sizeof favourites - 1)]; break;
        default: *at = copy[xg_rng_below(rng, (int)keep)]; break;
        }
    }
    *count = keep;
    return copy;
}

static void test_mutated_safetensors(void)
{
    xg_rng rng = xg_rng_seed(11);
    size_t size;
    unsigned char *good = make_file("{\"__metadata__\":{\"k\":\"v\\u00e9\","
                                    "\"xguide.buffer:b\":\"1\"}," T_A "," T_B "," T_FC "}", 36,
                                    &size);
    int accepted = 0, refused = 0;
    for (int i = 0; i < rounds(30000); i++) {
        size_t count = size;
        unsigned char *bytes = mutate(good, &count, &rng);
        const xg_load_options o = { i % 2 == 0, i % 3 == 0, i % 5 == 0 ? "b" : NULL };
        xg_params *store = sevens("a", xg_shape4(2, 2, 1, 1));
        const xg_code code = xg_params_parse(store, bytes, count, &o, NULL);
        CHECK(code == OK || code == BAD || code == NOT);
        CHECK_ERROR(xg_params_error(store), code);
        if (code != OK) CHECK(still_sevens(store));
        if (code == OK) accepted++;
        else refused++;
        xg_params_free(store);
        free(bytes);
    }
    CHECK(accepted > 0 && refused > accepted);
    free(good);
}

/* ---- saving ---------------------------------------------------------------------------------- */

static const char *const odd_names[] = {
    "layer1.0.conv1.weight", "a\"quote", "back\\slash", "tab\there", "\x01\x1f",
    "\xc3\xa9t\xc3\xa9 \xf0\x9f\x98\x80", "a/b", "__meta__", "optim", " "
};

/* A store of odd names and all kinds of shapes and bits. */
static xg_params *odd_store(void)
{
    static const xg_shape shapes[] = { { 2, 3, 3, 3 }, { 5, 1, 1, 1 }, { 1, 1, 1, 1 },
                                       { 2, 7, 1, 1 }, { 1, 4, 1, 1 }, { 3, 1, 1, 2 } };
    xg_rng rng = xg_rng_seed(5);
    xg_params *store = xg_params_new(NULL);
    for (int i = 0; i < (int)(sizeof odd_names / sizeof odd_names[0]); i++) {
        const xg_shape s = shapes[i % 6];
        const int at = xg_params_add(store, odd_names[i], s, i % 3 != 0);
        REQUIRE(at == i);
        xg_real *x = xg_params_data(store, at);
        for (size_t k = 0; k < xg_shape_size(s); k++) x[k] = (xg_real)xg_rng_normal(&rng);
        if (i == 0) {
            x[0] = (xg_real)-0.0;
            x[1] = (xg_real)INFINITY;
            x[2] = (xg_real)NAN;
            x[3] = (xg_real)1e-42;
        }
    }
    return store;
}

static void test_weights_come_back(void)
{
    char first[NAME_MAX_];
    xg_error error;
    xg_load_report r;
    xg_params *store = odd_store(), *same = odd_store(), *empty = xg_params_new(NULL);
    strcpy(first, in_folder("a.safetensors"));
    CHECK(xg_params_save(store, first, &error) == OK);
    CHECK_ERROR(&error, OK);
    for (int i = 0; i < xg_params_count(same); i++) xg_params_data(same, i)[0] = 99;
    CHECK(xg_params_load(same, first, NULL, &r) == OK);
    CHECK(r.loaded == 10 && r.missing + r.unexpected + r.mismatched == 0);
    CHECK(stores_equal(store, same));

    /* An empty store gets the entries, in their order, buffers as buffers, missing axes last. */
    CHECK(xg_params_load(empty, first, &creating, &r) == OK && r.loaded == 10);
    for (int i = 0; i < 10; i++) CHECK(!strcmp(xg_params_name(empty, i), odd_names[i]));
    CHECK(!xg_params_trainable(empty, 0) && xg_params_trainable(empty, 1));
    CHECK(xg_shape_same(xg_params_shape(empty, 3), xg_shape4(2, 7, 1, 1)));

    /* Little-endian, the last entry last. */
    size_t count_a, count_b;
    xg_params_data(same, 9)[0] = (xg_real)1.5;
    CHECK(xg_params_save(same, in_folder("b.safetensors"), NULL) == OK);
    unsigned char *b = slurp(in_folder("b.safetensors"), &count_b);
    const size_t last = count_b - xg_shape_size(xg_params_shape(same, 9)) * sizeof(xg_real);
    CHECK(b[last + sizeof(xg_real) - 1] == 0x3f && b[last] == 0);
    free(b);
    CHECK(xg_params_load(same, first, NULL, &r) == OK);

    /* The same store gives the same file; its numbers start at a multiple of eight. */
    unsigned char *a = slurp(first, &count_a);
    CHECK(xg_params_save(same, in_folder("b.safetensors"), NULL) == OK);
    b = slurp(in_folder("b.safetensors"), &count_b);
    CHECK(count_a == count_b && !memcmp(a, b, count_a));
    CHECK(a[0] % 8 == 0 && a[8] == '{');
    CHECK(!exists(in_folder("a.safetensors.tmp")));
    free(a);
    free(b);
    xg_params_free(store);
    xg_params_free(same);
    xg_params_free(empty);
}

static void test_names_that_cannot_be_saved(void)
{
    static const char *const names[] = { "__metadata__", "optim:x", "\xff", "a\xc3",
                                         "\xed\xa0\x80" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        xg_error error;
        xg_params *store = sevens(names[i], xg_shape4(1, 1, 1, 1));
        CHECK(xg_params_save(store, in_folder("b.safetensors.no"), &error) == XG_ERR_ARGUMENT);
        CHECK_ERROR(&error, XG_ERR_ARGUMENT);
        CHECK(!exists(in_folder("b.safetensors.no")) && !exists(in_folder("b.safetensors.no.tmp")));
        xg_params_free(store);
    }
}

/* Nowhere to write: an error, the old file as it was, and no temporary file left. */
static void test_failing_writes(void)
{
    char target[NAME_MAX_], temporary[NAME_MAX_], deep[NAME_MAX_];
    xg_error error;
    xg_params *store = sevens("a", xg_shape4(40, 50, 1, 1));
    strcpy(target, in_folder("a.safetensors"));
    strcpy(temporary, in_folder("a.safetensors.tmp"));
    strcpy(deep, in_folder("deep"));
    spill(target, "old", 3);

    CHECK(xg_params_save(store, in_folder("no/such/folder"), &error) == XG_ERR_IO);
    CHECK_ERROR(&error, XG_ERR_IO);
    CHECK(xg_params_save(store, "/proc/nothing.safetensors", NULL) == XG_ERR_IO);
    CHECK(xg_params_save(store, "/dev/xguide_test", NULL) == XG_ERR_IO);   /* even for root */
    remove("/dev/xguide_test");
    CHECK(xg_params_save(store, "", NULL) == XG_ERR_ARGUMENT);
    CHECK(xg_params_save(store, NULL, NULL) == XG_ERR_ARGUMENT);
    CHECK(mkdir(deep, 0700) == 0);
    CHECK(xg_params_save(store, deep, NULL) == XG_ERR_IO);              /* a folder has the name */
    CHECK(!exists(in_folder("deep.tmp")));
    if (geteuid() != 0) {
        CHECK(chmod(deep, 0500) == 0);
        CHECK(xg_params_save(store, in_folder("deep/x"), NULL) == XG_ERR_IO);
    }
    CHECK(rmdir(deep) == 0);

    if (exists("/dev/full")) {
        /* A full disk under the temporary file: a large write, and one that fails on the flush. */
        xg_params *small = sevens("a", xg_shape4(1, 1, 1, 1));
        CHECK(symlink("/dev/full", temporary) == 0);
        CHECK(xg_params_save(store, target, &error) == XG_ERR_IO && !exists(temporary));
        CHECK_ERROR(&error, XG_ERR_IO);
        CHECK(symlink("/dev/full", temporary) == 0);
        CHECK(xg_params_save(small, target, NULL) == XG_ERR_IO && !exists(temporary));
        CHECK(symlink("/dev/full", temporary) == 0);
        CHECK(xg_checkpoint_save(small, target, NULL, 0) == XG_ERR_IO && !exists(temporary));
        CHECK_ERROR(xg_params_error(small), XG_ERR_IO);
        xg_params_free(small);
    }
    size_t count;
    unsigned char *old = slurp(target, &count);
    CHECK(count == 3 && !memcmp(old, "old", 3));
    free(old);
    spill(temporary, "a leftover of a run that was killed", 35);
    CHECK(xg_params_save(store, target, NULL) == OK && !exists(temporary));
    CHECK(xg_params_load(store, target, NULL, NULL) == OK);
    xg_params_free(store);
}

/* Out of memory, xg_params_new gave NULL, and nobody looked. */
static void test_no_store(void)
{
    xg_error error;
    CHECK(xg_params_load(NULL, "a", NULL, NULL) == XG_ERR_MEMORY);
    CHECK(xg_params_parse(NULL, "a", 1, NULL, NULL) == XG_ERR_MEMORY);
    CHECK(xg_params_save(NULL, in_folder("a.safetensors"), &error) == XG_ERR_ARGUMENT);
    CHECK_ERROR(&error, XG_ERR_ARGUMENT);
    CHECK(xg_checkpoint_save(NULL, in_folder("a.safetensors"), NULL, 0) == XG_ERR_MEMORY);
    CHECK(xg_checkpoint_load(NULL, in_folder("a.safetensors"), NULL, 0, NULL) == XG_ERR_MEMORY);
    xg_npy_parse(NULL, "a", 1);
    xg_npy_load(NULL, "a");
}

static void test_failing_reads(void)
{
    xg_params *store = sevens("a", xg_shape4(2, 2, 1, 1));
    CHECK(xg_params_load(store, in_folder("none"), NULL, NULL) == XG_ERR_IO);
    CHECK_ERROR(xg_params_error(store), XG_ERR_IO);
    CHECK(strstr(xg_params_error(store)->text, "none") != NULL);
    xg_params_clear_error(store);
    CHECK(xg_params_load(store, in_folder(""), NULL, NULL) == XG_ERR_IO);
    xg_params_clear_error(store);
    CHECK(xg_params_load(store, NULL, NULL, NULL) == XG_ERR_ARGUMENT);
    xg_params_clear_error(store);
    CHECK(xg_params_load(store, "/dev/null", NULL, NULL) == BAD);
    CHECK(xg_checkpoint_load(store, in_folder("none"), NULL, 0, NULL) == BAD);   /* errors stick */
    xg_params_clear_error(store);
    CHECK(xg_checkpoint_load(store, in_folder("none"), NULL, 0, NULL) == XG_ERR_IO);
    CHECK(still_sevens(store));
    xg_params_free(store);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* An allocator that fails from the n-th request on, and one that counts what is out. */
typedef struct budget { int left, out; } budget;

static void *budget_alloc(void *user, size_t bytes)
{
    budget *b = (budget *)user;
    if (b->left-- <= 0) return NULL;
    b->out++;
    return malloc(bytes);
}

static void budget_release(void *user, void *memory)
{
    ((budget *)user)->out -= memory != NULL;
    free(memory);
}

/* Whichever request fails, nothing has changed and nothing leaks. */
static void test_out_of_memory(void)
{
    size_t count;
    /* 90 new entries, 64 KiB each: the store has to grow its lists and its arena. */
    char *header = (char *)malloc(90 * 96);
    size_t used = 0;
    REQUIRE(header != NULL);
    for (int i = 0; i < 90; i++) {
        used += (size_t)sprintf(header + used, "%c\"t%d\":{\"dtype\":\"U8\",\"shape\":[16384],"
                                "\"data_offsets\":[%d,%d]}", i ? ',' : '{', i, i * 16384,
                                (i + 1) * 16384);
    }
    strcpy(header + used, "}");
    unsigned char *bytes = make_file(header, 90 * 16384, &count);
    int failures = 0;
    for (int allowed = 1; ; allowed++) {
        budget b = { allowed, 0 };
        xg_config config;
        memset(&config, 0, sizeof config);
        config.alloc = budget_alloc;
        config.release = budget_release;
        config.memory_user = &b;
        xg_params *store = xg_params_new(&config);
        REQUIRE(store != NULL);
        REQUIRE(xg_params_add(store, "t5", xg_shape4(16384, 1, 1, 1), true) == 0);
        xg_params_data(store, 0)[9] = 7;
        const xg_code code = xg_params_parse(store, bytes, count, &creating, NULL);
        if (code != OK) {
            failures++;
            CHECK_ERROR(xg_params_error(store), XG_ERR_MEMORY);
            CHECK(xg_params_count(store) == 1 && xg_params_data(store, 0)[9] == (xg_real)7);
            CHECK(xg_params_find(store, "t0") < 0 && xg_params_find(store, "t5") == 0);
            xg_params_clear_error(store);      /* and the store works on */
            b.left = 1000;
            CHECK(xg_params_parse(store, bytes, count, &creating, NULL) == OK);
        }
        CHECK(xg_params_count(store) == 90 && xg_params_find(store, "t89") == 89);
        xg_params_free(store);
        CHECK(b.out == 0);
        if (code == OK || allowed > 100) break;
    }
    CHECK(failures >= 3);
    free(bytes);
    free(header);
}

/* A store in a buffer of the caller: loading borrows and gives back, so that it can be repeated. */
static void test_fixed_memory(void)
{
    static union { double align; unsigned char bytes[1 << 17]; } buffer;
    size_t count;
    unsigned char *file = make_file(THREE, 36, &count);
    xg_config config;
    memset(&config, 0, sizeof config);
    config.fixed = &buffer;
    config.fixed_bytes = sizeof buffer;
    xg_params *store = xg_params_new(&config);
    REQUIRE(store != NULL);
    spill(in_folder("a.safetensors"), file, count);
    for (int i = 0; i < 3000; i++) {
        CHECK(xg_params_parse(store, file, count, &creating, NULL) == OK);
        if (i % 10 == 0) CHECK(xg_params_load(store, in_folder("a.safetensors"), NULL, NULL) == OK);
    }
    CHECK(xg_params_count(store) == 3);
    /* A file of 16 KiB fits beside the store, one of 160 KiB does not. */
    unsigned char *large = make_file("{\"l\":{\"dtype\":\"U8\",\"shape\":[163840],"
                                     "\"data_offsets\":[0,163840]}}", 163840, &count);
    spill(in_folder("a.safetensors"), large, count);
    CHECK(xg_params_load(store, in_folder("a.safetensors"), NULL, NULL) == XG_ERR_MEMORY);
    CHECK(xg_params_count(store) == 3);
    free(large);
    free(file);
    xg_params_free(store);
}

/* A load for which memory runs out leaves no less of it than there was. */
static void test_fixed_memory_after_a_failure(void)
{
    static union { double align; unsigned char bytes[1 << 17]; } buffer;
    size_t count;
    unsigned char *file = make_file("{\"a\":{\"dtype\":\"U8\",\"shape\":[9000],\"data_offsets\":[0,9000]},"
                                    "\"b\":{\"dtype\":\"U8\",\"shape\":[30000],"
                                    "\"data_offsets\":[9000,39000]}}", 39000, &count);
    xg_config config;
    memset(&config, 0, sizeof config);
    config.fixed = &buffer;
    config.fixed_bytes = sizeof buffer;
    for (int known = 0; known < 2; known++) {           /* the first entry grows the lists, too */
        xg_params *store = xg_params_new(&config);
        if (known) CHECK(xg_params_add(store, "known", xg_shape4(1, 1, 1, 1), true) == 0);
        for (int i = 0; i < 9; i++) {
            CHECK(xg_params_parse(store, file, count, &creating, NULL) == XG_ERR_MEMORY);
            CHECK(xg_params_count(store) == known && xg_params_find(store, "a") < 0);
            xg_params_clear_error(store);
        }
        CHECK(xg_params_add(store, "c", xg_shape4(80000 / (int)sizeof(xg_real), 1, 1, 1), true) == known);
        CHECK(xg_params_find(store, "known") == known - 1 && xg_params_find(store, "c") == known);
        xg_params_free(store);
    }
    free(file);
}

/* An entry whose name still found memory and whose numbers did not is taken back, with the chunk
 * that its name began; the store is filled on from where it stood. */
static void test_store_goes_on_after_a_failure(void)
{
    enum { ROOM = 1 << 23, SIDE = 1000 };
    unsigned char *room = (unsigned char *)malloc(ROOM);
    char name[9001];
    REQUIRE(room != NULL);
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    rising memory = { room, room + ROOM };
    xg_config config = rising_config(&memory);
    xg_params *store = xg_params_new(&config);
    for (int i = 0; i < 600; i++) {
        char text[16];
        snprintf(text, sizeof text, "w%d", i);
        REQUIRE(xg_params_add(store, text, xg_shape4(SIDE, 1, 1, 1), true) == i);
        for (int k = 0; k < SIDE; k++) xg_params_data(store, i)[k] = (xg_real)(i + 1);
        CHECK(xg_params_add(store, name, xg_shape4(SIDE, SIDE, 4, 1), true) < 0);
        CHECK_ERROR(xg_params_error(store), XG_ERR_MEMORY);
        xg_params_clear_error(store);
    }
    for (int i = 0; i < 600; i++) {
        bool same = xg_params_name(store, i)[0] == 'w';
        for (int k = 0; k < SIDE; k++) same = same && xg_params_data(store, i)[k] == (xg_real)(i + 1);
        CHECK(same);
    }
    xg_params_free(store);
    free(room);
}

/* ---- checkpoints ----------------------------------------------------------------------------- */

/* One step of a small net with batch norm and two optimisers, data from the step's number. */
static void train_step(xg_params *store, const xg_optim *o, int step)
{
    xg_rng rng = xg_rng_seed((uint64_t)step + 100);
    xg_tape *tape = xg_tape_new(NULL);
    xg_scope s = xg_scope_new(tape, store, &rng, true);
    xg_tensor *x = xg_randn(tape, xg_shape4(6, 2, 4, 4), &rng);
    xg_conv_options conv;
    memset(&conv, 0, sizeof conv);
    conv.window.kh = conv.window.kw = 3;
    x = xg_relu(xg_batch_norm(&s, "bn", xg_conv(&s, "conv", x, 3, &conv), NULL));
    x = xg_dense(&s, "fc", x, 4, true);
    const int label[6] = { 0, 1, 2, 3, 0, 1 };
    CHECK(xg_optim_step(o, store, xg_cross_entropy(x, label, NULL)) == OK);
    CHECK_OK(tape);
    xg_tape_free(tape);
}

static void train(xg_params *store, int from, int to)
{
    xg_optim sgd, adam;
    memset(&sgd, 0, sizeof sgd);
    sgd.momentum = 0.9;
    sgd.slot = "first";
    sgd.only = "conv.";
    adam = sgd;
    adam.kind = XG_ADAM;
    adam.slot = "second";
    adam.only = NULL;
    adam.warmup = 8;
    for (int i = from; i < to; i++) train_step(store, i % 2 ? &adam : &sgd, i);
}

/* A slot that the names of state in a file cannot tell from what stands behind it. */
static void test_a_slot_that_files_cannot_name(void)
{
    xg_params *store = xg_params_new(NULL);
    xg_optim sgd;
    memset(&sgd, 0, sizeof sgd);
    sgd.momentum = 0.9;
    sgd.slot = "a:b";
    train_step(store, &sgd, 0);
    CHECK(xg_checkpoint_save(store, in_folder("slot"), NULL, 0) == XG_ERR_ARGUMENT);
    CHECK(strstr(xg_params_error(store)->text, "'a:b' cannot name a slot"));
    xg_params_free(store);
}

/* Ten steps, or five, a file, and five more in a new process: the same bits. */
static void test_resume_is_bit_exact(void)
{
    char path[NAME_MAX_];
    const xg_note saved[2] = { { "epoch", "5" }, { "rng \"state\"", "a\\b\n\xc3\xa9" } };
    xg_note notes[4];
    int count = -1;
    xg_params *whole = xg_params_new(NULL), *half = xg_params_new(NULL);
    xg_params *rest = xg_params_new(NULL);
    strcpy(path, in_folder("resume"));
    train(whole, 0, 10);
    train(half, 0, 5);
    xg_params_freeze(half, "fc.bias", true);
    CHECK(xg_checkpoint_save(half, path, saved, 2) == OK);
    CHECK(xg_checkpoint_load(rest, path, notes, 4, &count) == OK);
    CHECK(stores_equal(half, rest));
    CHECK(!xg_params_trainable(rest, xg_params_find(rest, "fc.bias")));
    CHECK(!xg_params_trainable(rest, xg_params_find(rest, "bn.running_mean")));
    REQUIRE(count == 2);
    for (int i = 0; i < 2; i++) {
        CHECK(!strcmp(notes[i].key, saved[i].key) && !strcmp(notes[i].value, saved[i].value));
    }
    xg_params_freeze(rest, "", false);
    train(rest, 5, 10);
    CHECK(stores_equal(whole, rest));
    xg_optim o;
    memset(&o, 0, sizeof o);
    o.slot = "second";
    CHECK(xg_optim_steps(&o, rest) == 5);

    /* The state is in the file: without it the bits differ. */
    xg_params *plain = xg_params_new(NULL);
    CHECK(xg_params_load(plain, path, &creating, NULL) == OK && stores_equal(half, plain) == false);
    xg_params_freeze(half, "", false);
    CHECK(stores_equal(half, plain));                       /* weights alone, no state among them */
    train(plain, 5, 10);
    CHECK(!stores_equal(whole, plain));

    /* Back in time: a store that went on becomes what the file says, and saves the same file. */
    CHECK(xg_checkpoint_load(whole, path, notes, 1, &count) == OK && count == 1);
    CHECK(xg_optim_steps(&o, whole) == 2);
    CHECK(xg_checkpoint_save(whole, in_folder("b.safetensors"), saved, 2) == OK);
    size_t count_a, count_b;
    unsigned char *a = slurp(path, &count_a), *b = slurp(in_folder("b.safetensors"), &count_b);
    CHECK(count_a == count_b && !memcmp(a, b, count_a));
    free(a);
    free(b);
    xg_params_free(whole);
    xg_params_free(half);
    xg_params_free(rest);
    xg_params_free(plain);
}

/* A checkpoint that made the entries is saved again as the same file: the weights of a 1x1
 * convolution have four axes, although no network has asked for them yet. */
static void test_axes_come_back(void)
{
    char path[NAME_MAX_];
    xg_params *store = xg_params_new(NULL), *same = xg_params_new(NULL);
    xg_rng rng = xg_rng_seed(3);
    xg_tape *tape = xg_tape_new(NULL);
    xg_scope s = xg_scope_new(tape, store, &rng, true);
    xg_data(xg_conv(&s, "conv", xg_randn(tape, xg_shape4(1, 2, 3, 3), &rng), 5, NULL));
    CHECK_OK(tape);
    xg_tape_free(tape);
    strcpy(path, in_folder("resume"));
    CHECK(xg_checkpoint_save(store, path, NULL, 0) == OK);
    CHECK(xg_checkpoint_load(same, path, NULL, 0, NULL) == OK);
    CHECK(xg_checkpoint_save(same, in_folder("b.safetensors"), NULL, 0) == OK);
    size_t count_a, count_b;
    unsigned char *a = slurp(path, &count_a), *b = slurp(in_folder("b.safetensors"), &count_b);
    REQUIRE(a && b && count_a > 8);
    CHECK(count_a == count_b && !memcmp(a, b, count_a));
    a[count_a - 1] = 0;
    CHECK(strstr((char *)a + 8, "\"shape\":[5,2,1,1]") != NULL);
    free(a);
    free(b);
    xg_params_free(store);
    xg_params_free(same);
}

static void test_checkpoints_that_do_not_fit(void)
{
    char path[NAME_MAX_];
    xg_params *store = sevens("a", xg_shape4(2, 2, 1, 1));
    xg_params *other = sevens("a", xg_shape4(2, 3, 1, 1));
    strcpy(path, in_folder("resume"));
    CHECK(xg_checkpoint_save(store, path, NULL, 0) == OK);
    CHECK(xg_checkpoint_load(other, path, NULL, 0, NULL) == XG_ERR_SHAPE && still_sevens(other));
    xg_params_add(store, "more", xg_shape4(1, 1, 1, 1), true);
    CHECK(xg_checkpoint_load(store, path, NULL, 0, NULL) == XG_ERR_NAME);
    CHECK_ERROR(xg_params_error(store), XG_ERR_NAME);
    CHECK(strstr(xg_params_error(store)->text, "more") != NULL);
    CHECK(xg_checkpoint_save(store, path, NULL, 0) == XG_ERR_NAME);     /* errors stick */
    xg_params_clear_error(store);
    CHECK(xg_params_save(store, path, NULL) == OK);
    CHECK(xg_checkpoint_load(store, path, NULL, 0, NULL) == BAD);       /* weights only */
    xg_params_free(store);
    xg_params_free(other);
}

#define MARK "\"xguide.checkpoint\":\"1\""
#define OWN (IS_DOUBLE ? "F64" : "F32")

/* State without its parameter, of another shape, of another build; bad counts and notes. */
static void test_hostile_checkpoints(void)
{
    static const struct { const char *metadata, *name; bool own; int extent; xg_code code; } c[] = {
        { MARK, "optim:sgd:0:a", true, 4, OK },
        { "\"k\":\"v\"", "optim:sgd:0:a", true, 4, BAD },
        { MARK, "optim:sgd:0:b", true, 4, BAD },
        { MARK, "optim:sgd:2:a", true, 4, BAD },
        { MARK, "optim:sgd:00:a", true, 4, BAD },
        { MARK, "optim:sgd:0", true, 4, BAD },
        { MARK, "optim:sgd", true, 4, BAD },
        { MARK, "optim::0:a", true, 4, BAD },
        { MARK, "optim:", true, 4, BAD },
        { MARK, "optim:sgd:0:optim:sgd:0:a", true, 4, BAD },
        { MARK, "optim:sgd:0:a", true, 3, BAD },
        { MARK, "optim:sgd:0:a", false, 4, NOT },
        { MARK, "optim:0123456789012345678901234567890123456789012345678901234567890123:0:a", true,
          4, BAD },
        { MARK ",\"xguide.steps:sgd\":\"12\"", "optim:sgd:0:a", true, 4, OK },
        { MARK ",\"xguide.steps:sgd\":\"-1\"", "optim:sgd:0:a", true, 4, BAD },
        { MARK ",\"xguide.steps:sgd\":\"\"", "optim:sgd:0:a", true, 4, BAD },
        { MARK ",\"xguide.steps:sgd\":\"9223372036854775808\"", "optim:sgd:0:a", true, 4, BAD },
        { MARK ",\"xguide.steps:sgd\":\"1 2\"", "optim:sgd:0:a", true, 4, BAD },
        { MARK ",\"xguide.note:k\":\"v\"", "optim:sgd:0:a", true, 4, OK },
        { MARK ",\"xguide.steps:\":\"1\"", "optim:sgd:0:a", true, 4, BAD },
        { MARK ",\"xguide.steps:a:b\":\"1\"", "optim:sgd:0:a", true, 4, BAD },
        { MARK ",\"xguide.note:012345678901234567890123456789012345678901234567\":\"v\"",
          "optim:sgd:0:a", true, 4, BAD },
    };
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        const int size = (int)sizeof(xg_real), state = c[i].own ? size : 12 - size;
        const int end = 4 * size + c[i].extent * state;
        char header[600];
        size_t count;
        snprintf(header, sizeof header, "{\"__metadata__\":{%s},\"a\":{\"dtype\":\"%s\","
                 "\"shape\":[2,2],\"data_offsets\":[0,%d]},\"%s\":{\"dtype\":\"%s\","
                 "\"shape\":[%d%s],\"data_offsets\":[%d,%d]}}", c[i].metadata, OWN,
                 4 * size, c[i].name, state == 8 ? "F64" : "F32",
                 c[i].extent == 4 ? 2 : 3, c[i].extent == 4 ? ",2" : "", 4 * size, end);
        unsigned char *bytes = make_file(header, (size_t)end, &count);
        spill(in_folder("resume"), bytes, count);
        free(bytes);
        xg_note note;
        int notes = -1;
        xg_params *store = sevens("a", xg_shape4(2, 2, 1, 1));
        const xg_code code = xg_checkpoint_load(store, in_folder("resume"), &note, 1, &notes);
        if (code != c[i].code) {
            test_fail_(__FILE__, __LINE__, header);
            printf("      got %s: %s\n", xg_code_name(code), xg_params_error(store)->text);
        }
        CHECK_ERROR(xg_params_error(store), code);
        CHECK(still_sevens(store) == (code != OK));
        xg_params_free(store);
    }
}

/* An entry of the store that is called like a state tensor of the file is not that. */
static void test_state_is_no_entry(void)
{
    static const char *const header = "{\"__metadata__\":{" MARK "},\"optim:sgd:0:a\":"
        "{\"dtype\":\"F32\",\"shape\":[100],\"data_offsets\":[0,400]}}";
    xg_load_report r;
    xg_params *store = sevens("optim:sgd:0:a", xg_shape4(1, 1, 1, 1));
    CHECK(parse(store, header, 400, NULL, &r) == OK && still_sevens(store));
    CHECK(r.loaded == 0 && r.missing == 1 && r.unexpected == 0);
    xg_params_free(store);
}

static void test_bad_notes(void)
{
    xg_note notes[2] = { { "k", "v" }, { "k", "w" } };
    xg_params *store = sevens("a", xg_shape4(1, 1, 1, 1));
    CHECK(xg_checkpoint_save(store, in_folder("resume"), notes, 2) == XG_ERR_ARGUMENT);  /* twice */
    xg_params_clear_error(store);
    CHECK(xg_checkpoint_save(store, in_folder("resume"), notes, 1) == OK);
    memset(notes[1].key, 'k', sizeof notes[1].key);                           /* no end */
    CHECK(xg_checkpoint_save(store, in_folder("resume"), notes, 2) == XG_ERR_ARGUMENT);
    xg_params_clear_error(store);
    strcpy(notes[1].key, "\xff");
    CHECK(xg_checkpoint_save(store, in_folder("resume"), notes, 2) == XG_ERR_ARGUMENT);
    xg_params_clear_error(store);
    memset(&notes[1], 'x', sizeof notes[1]);                       /* as long as can be */
    notes[1].key[sizeof notes[1].key - 1] = 0;
    notes[1].value[sizeof notes[1].value - 1] = 0;
    CHECK(xg_checkpoint_save(store, in_folder("resume"), notes, 2) == OK);
    xg_note back[2];
    int count = 0;
    CHECK(xg_checkpoint_load(store, in_folder("resume"), back, 2, &count) == OK && count == 2);
    CHECK(!strcmp(back[1].key, notes[1].key) && !strcmp(back[1].value, notes[1].value));
    xg_params_free(store);
}

static void test_mutated_checkpoints(void)
{
    xg_rng rng = xg_rng_seed(12);
    const xg_note note = { "epoch", "3" };
    xg_params *trained = xg_params_new(NULL);
    size_t size, header = 0;
    train(trained, 0, 2);
    CHECK(xg_checkpoint_save(trained, in_folder("resume"), &note, 1) == OK);
    unsigned char *good = slurp(in_folder("resume"), &size);
    REQUIRE(good != NULL);
    for (int i = 3; i >= 0; i--) header = header << 8 | good[i];
    for (int i = 0; i < rounds(2000); i++) {
        size_t count = header + 8, changed;       /* numbers may be anything: change the header */
        changed = count;
        unsigned char *bytes = mutate(good, &changed, &rng);
        FILE *file = fopen(in_folder("resume"), "wb");
        REQUIRE(file != NULL);
        fwrite(bytes, 1, changed, file);
        if (changed == count) fwrite(good + count, 1, size - count, file);
        fclose(file);
        xg_note notes[2];
        xg_params *store = xg_params_clone(trained);
        const xg_code code = xg_checkpoint_load(store, in_folder("resume"), notes, 2, NULL);
        CHECK_ERROR(xg_params_error(store), code);
        CHECK(code != XG_ERR_MEMORY && code != XG_ERR_IO && code != XG_ERR_ARGUMENT);
        if (code != OK) CHECK(stores_equal(trained, store));
        xg_params_free(store);
        free(bytes);
    }
    free(good);
    xg_params_free(trained);
}

/* ---- npy ------------------------------------------------------------------------------------- */

/* An npy file in memory of its size; `version` 1 has a length of two bytes, later ones of four. */
static unsigned char *make_npy(int version, const char *dict, const void *data, size_t bytes,
                               size_t *count)
{
    const size_t length = strlen(dict), size = version == 1 ? 2 : 4;
    *count = 8 + size + length + bytes;
    unsigned char *file = (unsigned char *)malloc(*count);
    REQUIRE(file != NULL);
    memcpy(file, "\x93NUMPY", 6);
    file[6] = (unsigned char)version;
    file[7] = 0;
    put_little(file + 8, length, size);
    memcpy(file + 8 + size, dict, length);
    if (data) memcpy(file + 8 + size + length, data, bytes);
    else memset(file + 8 + size + length, 1, bytes);
    return file;
}

#define DICT(descr, order, shape) \
    "{'descr': '" descr "', 'fortran_order': " order ", 'shape': " shape ", }"

static void test_npy_formats(void)
{
    static const struct {
        const char *dict;
        unsigned char data[16];
        xg_shape shape;
        double value[2];                        /* the first and the last */
    } c[] = {
        { DICT("<f4", "False", "(2,)"), { 0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0 }, { 2, 1, 1, 1 },
          { 1.5, -2 } },
        { DICT("<f8", "False", "(1, 2)"), { 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0, 0, 0, 0, 0, 0, 0,
          0xc0 }, { 1, 2, 1, 1 }, { 1.5, -2 } },
        { DICT("<f2", "False", "(1, 1, 2)"), { 0, 0x3e, 0, 0xc0 }, { 1, 1, 2, 1 }, { 1.5, -2 } },
        { DICT("|u1", "False", "(1, 1, 1, 2)"), { 5, 0xff }, { 1, 1, 1, 2 }, { 5, 255 } },
        { DICT("|i1", "False", "(2,)"), { 5, 0xff }, { 2, 1, 1, 1 }, { 5, -1 } },
        { DICT("|b1", "False", "(2, 1)"), { 0, 1 }, { 2, 1, 1, 1 }, { 0, 1 } },
        { DICT("<i4", "False", "(2,)"), { 5, 1, 0, 0, 0xfe, 0xff, 0xff, 0xff },
          { 2, 1, 1, 1 }, { 261, -2 } },
        { DICT("<i8", "False", "(2,)"), { 5, 1, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff,
          0xff, 0xff, 0xff, 0xff }, { 2, 1, 1, 1 }, { 261, -2 } },
        { DICT(">f4", "False", "(2,)"), { 0x3f, 0xc0, 0, 0, 0xc0, 0, 0, 0 }, { 2, 1, 1, 1 },
          { 1.5, -2 } },
        { "{\"shape\":(),\"fortran_order\":False,\"descr\":\"|u1\"}   \n", { 9 }, { 1, 1, 1, 1 },
          { 9, 9 } },
    };
    static const size_t sizes[] = { 4, 8, 2, 1, 1, 1, 4, 8, 4, 1 };
    xg_tape *tape = xg_tape_new(NULL);
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        for (int version = 1; version <= 3; version++) {
            size_t count;
            const size_t n = xg_shape_size(c[i].shape);
            unsigned char *file = make_npy(version, c[i].dict, c[i].data, n * sizes[i], &count);
            xg_tensor *x = xg_npy_parse(tape, file, count);
            CHECK_OK(tape);
            CHECK(xg_shape_same(xg_shape_of(x), c[i].shape));
            CHECK((double)xg_data(x)[0] == c[i].value[0]);
            CHECK((double)xg_data(x)[n - 1] == c[i].value[1]);
            free(file);
        }
    }
    xg_tape_free(tape);
}

static void test_hostile_npy(void)
{
    static const struct { const char *dict; size_t bytes; xg_code code; } c[] = {
        { DICT("<f4", "False", "(2, 2)"), 16, OK },
        { DICT("<f4", "True", "(2, 2)"), 16, NOT },
        { DICT("<f4", "False", "(2, 2)"), 15, BAD }, { DICT("<f4", "False", "(2, 2)"), 17, BAD },
        { DICT("<f4", "False", "(2, 2)"), 0, BAD }, { DICT("<f4", "False", "(2, 2)"), 20, BAD },
        { DICT("<c8", "False", "(2,)"), 16, NOT }, { DICT("|S4", "False", "(4,)"), 16, NOT },
        { DICT("|O", "False", "(2,)"), 16, NOT }, { DICT("<M8[ns]", "False", "(2,)"), 16, NOT },
        { DICT("<u4", "False", "(4,)"), 16, NOT }, { DICT("|f4", "False", "(4,)"), 16, NOT },
        { DICT("=f4", "False", "(4,)"), 16, NOT }, { DICT("f4", "False", "(4,)"), 16, NOT },
        { DICT("<", "False", "(4,)"), 16, NOT }, { DICT("", "False", "(4,)"), 16, NOT },
        { DICT("<f4", "False", "(1, 1, 1, 2, 2)"), 16, NOT },
        { DICT("<f4", "False", "(0,)"), 0, NOT },
        { DICT("<f4", "False", "(4294967300,)"), 16, NOT },
        { DICT("<f4", "False", "(2147483647, 2147483647, 2147483647)"), 16, BAD },
        { DICT("<f4", "False", "(65536, 65536, 65536, 65536)"), 0, BAD },
        { DICT("<f4", "False", "(2147483647,)"), 16, BAD },
        { DICT("<f4", "False", "(18446744073709551616,)"), 16, BAD },
        { DICT("<f4", "False", "(-4,)"), 16, BAD }, { DICT("<f4", "False", "(4)"), 16, BAD },
        { DICT("<f4", "False", "(2 2)"), 16, BAD }, { DICT("<f4", "False", "(2,, 2)"), 16, BAD },
        { DICT("<f4", "False", "(,)"), 16, BAD }, { DICT("<f4", "False", "[4]"), 16, BAD },
        { DICT("<f4", "False", "4"), 16, BAD }, { DICT("<f4", "false", "(4,)"), 16, BAD },
        { DICT("<f4", "0", "(4,)"), 16, BAD }, { DICT("<f4", "", "(4,)"), 16, BAD },
        { "{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (4,)}", 16, NOT },
        { "{'descr': '<f4', 'fortran_order': False}", 16, BAD },
        { "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (4,)}", 16, BAD },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), 'more': 1}", 16, BAD },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (4,)} x", 16, BAD },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (4,)", 16, BAD },
        { "{'descr': '<f4' 'fortran_order': False, 'shape': (4,)}", 16, BAD },
        { "{'descr: '<f4', 'fortran_order': False, 'shape': (4,)}", 16, BAD },
        { "{'descr\": '<f4', 'fortran_order': False, 'shape': (4,)}", 16, BAD },
        { "{'descr': '<f4, 'fortran_order': False, 'shape': (4,)}", 16, NOT },
        { "{'de\\x73cr': '<f4', 'fortran_order': False, 'shape': (4,)}", 16, BAD },
        { "{descr: '<f4', 'fortran_order': False, 'shape': (4,)}", 16, BAD },
        { "", 16, BAD }, { "{", 16, BAD }, { "{}", 16, BAD }, { "(", 16, BAD }, { "{'", 16, BAD },
    };
    xg_tape *tape = xg_tape_new(NULL);
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        size_t count;
        unsigned char *file = make_npy(1 + (int)(i % 3), c[i].dict, NULL, c[i].bytes, &count);
        xg_tensor *x = xg_npy_parse(tape, file, count);
        if (xg_tape_error(tape)->code != c[i].code) {
            test_fail_(__FILE__, __LINE__, c[i].dict);
            printf("      got %s: %s\n", xg_code_name(xg_tape_error(tape)->code),
                   xg_tape_error(tape)->text);
        }
        CHECK_ERROR(xg_tape_error(tape), c[i].code);
        if (c[i].code != OK) CHECK(xg_item(x) != xg_item(x));      /* poison reads as NaN */
        free(file);
        xg_tape_reset(tape);
    }
    xg_tape_free(tape);
}

static void test_hostile_npy_lengths(void)
{
    size_t count;
    unsigned char *file = make_npy(1, DICT("<f4", "False", "(2, 2)"), NULL, 16, &count);
    xg_tape *tape = xg_tape_new(NULL);
    for (size_t cut = 0; cut < count; cut++) {
        unsigned char *part = (unsigned char *)malloc(cut ? cut : 1);
        REQUIRE(part != NULL);
        memcpy(part, file, cut);
        xg_npy_parse(tape, part, cut);
        CHECK_ERROR(xg_tape_error(tape), BAD);
        xg_tape_reset(tape);
        free(part);
    }
    file[6] = 2;                                /* the length is now four bytes, two of them text */
    xg_npy_parse(tape, file, count);
    CHECK_ERROR(xg_tape_error(tape), BAD);
    xg_tape_reset(tape);
    for (int version = 0; version < 256; version += 4) {
        file[6] = (unsigned char)version;
        xg_npy_parse(tape, file, count);
        CHECK_ERROR(xg_tape_error(tape), NOT);
        xg_tape_reset(tape);
    }
    file[6] = 1;
    file[1] = 'n';
    xg_npy_parse(tape, file, count);
    CHECK_ERROR(xg_tape_error(tape), BAD);
    xg_npy_load(tape, in_folder("none"));       /* errors stick */
    CHECK_ERROR(xg_tape_error(tape), BAD);
    xg_clear_error(tape);
    xg_npy_load(tape, in_folder("none"));
    CHECK_ERROR(xg_tape_error(tape), XG_ERR_IO);
    xg_clear_error(tape);
    xg_npy_load(tape, NULL);
    CHECK_ERROR(xg_tape_error(tape), XG_ERR_ARGUMENT);
    xg_clear_error(tape);
    xg_npy_load(tape, in_folder(""));
    CHECK_ERROR(xg_tape_error(tape), XG_ERR_IO);
    free(file);
    xg_tape_free(tape);
}

/* Spaces after the dict are usual; a header that is nothing but large is not read. */
static void test_long_npy_header(void)
{
    static const struct { size_t length; xg_code code; } c[] = { { 100, OK }, { 4096, OK },
                                                                 { 4097, BAD }, { 60000, BAD } };
    static char dict[60001];
    xg_tape *tape = xg_tape_new(NULL);
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        size_t count;
        memset(dict, ' ', c[i].length);
        memcpy(dict, DICT("<f4", "False", "(2, 2)"), strlen(DICT("<f4", "False", "(2, 2)")));
        dict[c[i].length] = 0;
        unsigned char *file = make_npy(1, dict, NULL, 16, &count);
        xg_npy_parse(tape, file, count);
        CHECK_ERROR(xg_tape_error(tape), c[i].code);
        xg_tape_reset(tape);
        free(file);
    }
    xg_tape_free(tape);
}

static void test_npy_comes_back(void)
{
    static const xg_shape shapes[] = { { 1, 1, 1, 1 }, { 2, 3, 5, 7 }, { 1, 1, 1, 511 },
                                       { 512, 1, 1, 1 }, { 3, 1, 1, 1025 } };
    xg_rng rng = xg_rng_seed(3);
    xg_tape *tape = xg_tape_new(NULL);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        xg_tensor *x = xg_randn(tape, shapes[i], &rng);
        xg_leaf_data(x)[0] = (xg_real)-0.0;
        CHECK(xg_npy_save(x, in_folder("x.npy")) == OK);
        xg_tensor *y = xg_npy_load(tape, in_folder("x.npy"));
        CHECK_OK(tape);
        REQUIRE(xg_shape_same(xg_shape_of(x), xg_shape_of(y)));
        CHECK(!memcmp(xg_data(x), xg_data(y), xg_size(x) * sizeof(xg_real)));
        size_t count;
        unsigned char *file = slurp(in_folder("x.npy"), &count);
        CHECK((count - xg_size(x) * sizeof(xg_real)) % 64 == 0);
        CHECK(file && file[count - xg_size(x) * sizeof(xg_real) - 1] == '\n');
        free(file);
    }
    size_t size;
    CHECK(xg_npy_save(xg_scalar(tape, 1.5), in_folder("x.npy")) == OK);    /* little-endian */
    unsigned char *bytes = slurp(in_folder("x.npy"), &size);
    REQUIRE(bytes != NULL && size == 128 + sizeof(xg_real));
    CHECK(bytes[size - 1] == 0x3f && bytes[size - 2] == (IS_DOUBLE ? 0xf8 : 0xc0));
    CHECK(!memcmp(bytes + 10, IS_DOUBLE ? "{'descr': '<f8'," : "{'descr': '<f4',", 16));
    free(bytes);
    xg_tensor *sum = xg_sum(xg_full(tape, xg_shape4(2, 2, 1, 1), 0.5));      /* not only leaves */
    CHECK(xg_npy_save(sum, in_folder("x.npy")) == OK);
    CHECK(xg_item(xg_npy_load(tape, in_folder("x.npy"))) == 2.0);
    CHECK(xg_npy_save(sum, in_folder("no/x.npy")) == XG_ERR_IO);
    CHECK_ERROR(xg_tape_error(tape), XG_ERR_IO);
    CHECK(xg_npy_save(sum, in_folder("x.npy")) == XG_ERR_IO);                 /* a failed tape */
    CHECK(xg_npy_save(NULL, in_folder("x.npy")) == XG_ERR_ARGUMENT);
    xg_tape_free(tape);
}

static void test_mutated_npy(void)
{
    xg_rng rng = xg_rng_seed(13);
    xg_tape *tape = xg_tape_new(NULL);
    int accepted = 0, refused = 0;
    size_t size[3];
    unsigned char *good[3];
    good[0] = make_npy(1, DICT("<f4", "False", "(2, 3)"), NULL, 24, &size[0]);
    good[1] = make_npy(2, DICT("<i8", "False", "(1, 1, 3, 2)"), NULL, 48, &size[1]);
    good[2] = make_npy(3, DICT("|u1", "False", "(6,)"), NULL, 6, &size[2]);
    for (int i = 0; i < rounds(30000); i++) {
        size_t count = size[i % 3];
        unsigned char *bytes = mutate(good[i % 3], &count, &rng);
        xg_tensor *x = xg_npy_parse(tape, bytes, count);
        const xg_code code = xg_tape_error(tape)->code;
        CHECK(code == OK || code == BAD || code == NOT);
        if (code == OK) accepted++;
        else refused++;
        if (code == OK) CHECK(xg_size(x) * 2 <= count);      /* no number from nothing */
        free(bytes);
        xg_tape_reset(tape);
    }
    CHECK(accepted > 0 && refused > accepted);
    for (int i = 0; i < 3; i++) free(good[i]);
    xg_tape_free(tape);
}

/* ---- real files ------------------------------------------------------------------------------ */

static void test_real_weights(void)
{
    static const struct {
        const char *name, *tensor;
        int tensors;                            /* in the file */
        double first;                           /* number of that tensor */
        xg_shape shape;
    } c[] = {
        { "mobilenet_v2_1.0_224_imagenet_dequant_fp16.safetensors", "c27.weight", 106,
          -0.0191497802734375, { 384, 64, 1, 1 } },
        { "resnet18_imagenet1k_v1_bnfolded_partial.safetensors", "layer2.1.conv1.weight", 38,
          -0.00066373712616041303, { 128, 128, 3, 3 } },
        { "resnet20_cifar10.safetensors", "layer2.1.bn1.running_var", 97, 2.979536771774292,
          { 32, 1, 1, 1 } },
        { "squeezenet1_1_imagenet_fp16.safetensors", "fire6/squeeze1x1.weight", 52,
          0.00811004638671875, { 48, 256, 1, 1 } },
    };
    char path[NAME_MAX_];
    snprintf(path, sizeof path, "%s/weights/%s", test_data(), c[0].name);
    if (!exists(path)) SKIP("the pretrained weights are not here");
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        xg_load_report r;
        xg_params *store = xg_params_new(NULL), *again = xg_params_new(NULL);
        snprintf(path, sizeof path, "%s/weights/%s", test_data(), c[i].name);
        CHECK(xg_params_load(store, path, &creating, &r) == OK);
        CHECK_ERROR(xg_params_error(store), OK);
        CHECK(r.loaded == c[i].tensors && xg_params_count(store) == c[i].tensors);
        const int at = xg_params_find(store, c[i].tensor);
        REQUIRE(at >= 0);
        CHECK(xg_shape_same(xg_params_shape(store, at), c[i].shape));
        CHECK((double)xg_params_data(store, at)[0] == c[i].first);
        CHECK(xg_params_save(store, in_folder("a.safetensors"), NULL) == OK);
        CHECK(xg_params_load(again, in_folder("a.safetensors"), &creating, NULL) == OK);
        CHECK(stores_equal(store, again));
        xg_params_free(store);
        xg_params_free(again);
    }
}

TEST_MAIN(
    TEST(test_half_precision)
    TEST(test_number_formats)
    TEST(test_report)
    TEST(test_shapes_that_match)
    TEST(test_long_lists_are_cut)
    TEST(test_header_variants)
    TEST(test_hostile_headers)
    TEST(test_hostile_lengths)
    TEST(test_unsupported_only_if_used)
    TEST(test_many_tensors)
    TEST(test_mutated_safetensors)
    TEST(test_weights_come_back)
    TEST(test_names_that_cannot_be_saved)
    TEST(test_failing_writes)
    TEST(test_no_store)
    TEST(test_failing_reads)
    TEST(test_out_of_memory)
    TEST(test_fixed_memory)
    TEST(test_fixed_memory_after_a_failure)
    TEST(test_store_goes_on_after_a_failure)
    TEST(test_a_slot_that_files_cannot_name)
    TEST(test_resume_is_bit_exact)
    TEST(test_axes_come_back)
    TEST(test_checkpoints_that_do_not_fit)
    TEST(test_hostile_checkpoints)
    TEST(test_state_is_no_entry)
    TEST(test_bad_notes)
    TEST(test_mutated_checkpoints)
    TEST(test_npy_formats)
    TEST(test_hostile_npy)
    TEST(test_hostile_npy_lengths)
    TEST(test_long_npy_header)
    TEST(test_npy_comes_back)
    TEST(test_mutated_npy)
    TEST(test_real_weights)
    remove_folder();
)
