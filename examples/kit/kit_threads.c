/* kit_threads.c - K12: a pool of persistent threads for xg_config.parallel_for, and memory in large
 * pages for xg_config.alloc.
 *
 * A job's tasks are split into equal ranges, one for each thread, so that a thread sees the same part
 * of every tensor again. A thread takes its own range from the front; when that is empty it takes
 * from the ends of others', so that one whose processor was taken away holds up nobody.
 *
 * A range is one 64-bit number: its first task in the upper half, its end in the lower. A task is
 * claimed by compare-and-swap on it. That the swap succeeded proves that this job has a task that is
 * not done, so the job's fields cannot change until that task is: they are read only after the swap. */
#define _DEFAULT_SOURCE                 /* madvise */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "kit.h"

#define BRIEF_SECONDS 2e-6     /* how long an idle thread looks out at full speed                   */
#define SPIN_SECONDS 50e-6     /* and how long before it sleeps                                     */

/* Each has cache lines of its own: threads that write side by side would wait for one another. */
typedef struct worker {
    uint64_t         range;      /* atomic: tasks of this job that are this thread's              */
    struct kit_pool *pool;
    pthread_t        thread;
    int              index;      /* 1 .. threads-1; the caller is 0                               */
    char             apart[128 - 2 * sizeof(uint64_t) - sizeof(pthread_t) - sizeof(int)];
} worker;

struct kit_pool {
    int      threads;
    int      started;            /* of them, the caller included: all, unless making failed       */
    worker  *workers;            /* [threads]; the first is the caller, whoever that is           */

    /* The job. Written by the caller before the ranges, read after a claim. */
    void   (*run)(void *context, int task, int worker);
    void    *context;
    int      tasks;

    int      finished;           /* atomic: tasks done                                            */
    int      sleepers;           /* atomic: workers that wait for `work`                          */
    int      caller_sleeps;      /* atomic: the caller waits for `done`                           */
    bool     stop;               /* under mutex                                                   */
    bool     busy;               /* under mutex: a job runs                                       */

    pthread_mutex_t mutex;
    pthread_cond_t  work, done;
};

/* Tells the processor that this is a waiting loop: it then leaves its power to the other thread. */
static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static uint64_t range_of(int from, int to) { return (uint64_t)from << 32 | (uint64_t)to; }

static bool is_empty(uint64_t range) { return range >> 32 >= (range & 0xffffffffu); }

static uint64_t range_now(worker *w) { return __atomic_load_n(&w->range, __ATOMIC_SEQ_CST); }

static bool work_left(kit_pool *pool)
{
    for (int i = 0; i < pool->threads; i++) {
        if (!is_empty(range_now(&pool->workers[i]))) return true;
    }
    return false;
}

static bool job_finished(kit_pool *pool)
{
    return __atomic_load_n(&pool->finished, __ATOMIC_SEQ_CST) == pool->tasks;
}

/* Claims the first task of a range, or the last; -1 when it is empty. */
static int claim(worker *w, bool first)
{
    uint64_t range = range_now(w);
    while (!is_empty(range)) {
        uint64_t rest = first ? range + ((uint64_t)1 << 32) : range - 1;
        if (__atomic_compare_exchange_n(&w->range, &range, rest, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
            return (int)(first ? range >> 32 : rest & 0xffffffffu);
        }                                               /* else `range` was read anew */
    }
    return -1;
}

/* Runs the tasks of thread `index`, then those that others have not come to. */
static void work_on(kit_pool *pool, int index)
{
    int ran = 0, tasks = 0;
    for (int i = 0; i < pool->threads; i++) {
        int of = (index + i) % pool->threads;
        for (int task; (task = claim(&pool->workers[of], i == 0)) >= 0; ran++) {
            pool->run(pool->context, task, index);
        }
        if (ran > 0) tasks = pool->tasks;
    }
    if (ran == 0) return;
    /* After this the caller may return and the pool's fields belong to the next job. */
    int finished = __atomic_add_fetch(&pool->finished, ran, __ATOMIC_SEQ_CST);
    if (finished == tasks && __atomic_load_n(&pool->caller_sleeps, __ATOMIC_SEQ_CST) != 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->mutex);
    }
}

/* Looks for a condition for a short while. Soon it lets others run between two looks: the thread that
 * it waits for may be waiting for this very processor. */
static bool spin_until(kit_pool *pool, bool (*condition)(kit_pool *))
{
    double start = kit_seconds(), passed = 0;
    while (passed < SPIN_SECONDS) {
        for (int i = 0; i < 32; i++) {          /* a clock reading costs as much as many looks    */
            if (condition(pool)) return true;
            relax();
        }
        if (passed > BRIEF_SECONDS) sched_yield();
        passed = kit_seconds() - start;
    }
    return false;
}

/* Sleeps until there is work; false when the pool is being freed. `sleepers` goes up before the
 * ranges are read, and a caller reads `sleepers` after writing them: one sees the other. */
static bool sleep_until_work(kit_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    __atomic_add_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    while (!pool->stop && !work_left(pool)) pthread_cond_wait(&pool->work, &pool->mutex);
    __atomic_sub_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    bool go_on = !pool->stop;
    pthread_mutex_unlock(&pool->mutex);
    return go_on;
}

/* Looks out for work, sleeps when there is none, until the pool is freed. */
static void *worker_main(void *argument)
{
    worker *self = (worker *)argument;
    while (spin_until(self->pool, work_left) || sleep_until_work(self->pool)) {
        work_on(self->pool, self->index);
    }
    return NULL;
}

/* Waits for tasks that other threads still run. */
static void wait_for_end(kit_pool *pool)
{
    if (spin_until(pool, job_finished)) return;
    pthread_mutex_lock(&pool->mutex);
    __atomic_store_n(&pool->caller_sleeps, 1, __ATOMIC_SEQ_CST);
    while (!job_finished(pool)) pthread_cond_wait(&pool->done, &pool->mutex);
    __atomic_store_n(&pool->caller_sleeps, 0, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool->mutex);
}

/* Which worker the calling thread is: its number, or 0 for any thread that is not of the pool. */
static int own_index(const kit_pool *pool)
{
    pthread_t self = pthread_self();
    for (int i = 1; i < pool->threads; i++) {
        if (pthread_equal(self, pool->workers[i].thread)) return i;
    }
    return 0;
}

/* Takes the pool for a job; false when it runs one already. */
static bool take(kit_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    bool taken = !pool->busy;
    if (taken) pool->busy = true;
    pthread_mutex_unlock(&pool->mutex);
    return taken;
}

/* After this another thread may start a job. */
static void give_back(kit_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    pool->busy = false;
    pthread_mutex_unlock(&pool->mutex);
}

void kit_pool_run(kit_pool *pool, int tasks, void (*run)(void *context, int task, int worker),
                  void *context)
{
    if (tasks < 2 || pool == NULL || pool->threads < 2 || !take(pool)) {
        /* Serial. A call from inside a task keeps the number of the worker that it is made on. */
        int index = pool == NULL || tasks < 1 ? 0 : own_index(pool);
        for (int i = 0; i < tasks; i++) run(context, i, index);
        return;
    }
    pool->run = run;
    pool->context = context;
    pool->tasks = tasks;
    __atomic_store_n(&pool->finished, 0, __ATOMIC_SEQ_CST);
    for (int i = 0; i < pool->threads; i++) {
        int from = (int)((int64_t)tasks * i / pool->threads);
        int to = (int)((int64_t)tasks * (i + 1) / pool->threads);
        __atomic_store_n(&pool->workers[i].range, range_of(from, to), __ATOMIC_SEQ_CST);
    }
    if (__atomic_load_n(&pool->sleepers, __ATOMIC_SEQ_CST) > 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->mutex);
    }
    work_on(pool, 0);
    wait_for_end(pool);
    give_back(pool);
}

/* ---------------------------------------------------------------------------- making, ending -- */

/* If a thread cannot be started, those that were are ended again: all or nothing. */
kit_pool *kit_pool_new(int threads, xg_error *error)
{
    if (threads == 0) threads = kit_cpus();
    if (threads < 1 || threads > 1024) {
        kit_fail(error, XG_ERR_ARGUMENT, "a pool needs 1 to 1024 threads, not %d", threads);
        return NULL;
    }
    kit_pool *pool = (kit_pool *)calloc(1, sizeof *pool);
    if (pool != NULL) pool->workers = (worker *)calloc((size_t)threads, sizeof *pool->workers);
    if (pool == NULL || pool->workers == NULL) {
        free(pool);
        kit_fail(error, XG_ERR_MEMORY, "out of memory for a thread pool");
        return NULL;
    }
    pool->threads = threads;
    pool->started = 1;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->done, NULL);
    for (int i = 1; i < threads; i++) {
        worker *w = &pool->workers[i];
        w->pool = pool;
        w->index = i;
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            kit_fail(error, XG_ERR_UNSUPPORTED, "only %d of %d threads could be started; ask for "
                     "fewer", i, threads);
            kit_pool_free(pool);
            return NULL;
        }
        pool->started = i + 1;
    }
    return pool;
}

void kit_pool_free(kit_pool *pool)
{
    if (pool == NULL) return;
    pthread_mutex_lock(&pool->mutex);
    pool->stop = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 1; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->workers);
    free(pool);
}

int kit_pool_threads(const kit_pool *pool) { return pool == NULL ? 1 : pool->threads; }

static void run_for_config(void *user, int tasks, void (*run)(void *context, int task, int worker),
                           void *context)
{
    kit_pool_run((kit_pool *)user, tasks, run, context);
}

/* Without a pool the configuration stays as it is: the library's own default. */
void kit_pool_config(kit_pool *pool, xg_config *config)
{
    if (pool == NULL) return;
    config->parallel_for = run_for_config;
    config->parallel_user = pool;
    config->workers = pool->threads;
}

/* ---------------------------------------------------------------------------------- memory -- */

#define LARGE_PAGE ((size_t)2 << 20)

/* Memory that is used for the first time costs a trip into the system for each page, and there are
 * 512 times fewer large ones. Small pieces stay with malloc; free() takes back both. */
static void *take_memory(void *user, size_t bytes)
{
    (void)user;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    void *memory = NULL;
    if (bytes >= 2 * LARGE_PAGE && posix_memalign(&memory, LARGE_PAGE, bytes) == 0) {
        madvise(memory, bytes, MADV_HUGEPAGE);          /* a wish: nothing depends on it */
        return memory;
    }
#endif
    return malloc(bytes);
}

static void give_memory(void *user, void *memory)
{
    (void)user;
    free(memory);
}

void kit_memory_config(xg_config *config)
{
    config->alloc = take_memory;
    config->release = give_memory;
    config->memory_user = NULL;
}
