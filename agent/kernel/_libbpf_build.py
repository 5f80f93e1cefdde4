"""
The binding to libbpf, compiled by `hatch_build.py` into the module `agent.kernel._libbpf`.

In API mode the C compiler reads struct layouts from libbpf's own headers. A hand-written ctypes
twin of `bpf_object_open_opts` misses a hidden pad and passes its options shifted, silently. Small
C functions stand where libbpf wants an options struct, varargs or BTF iteration.
"""

from __future__ import annotations

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef("""
    struct bpf_object;
    struct bpf_map;
    struct bpf_program;

    enum bpf_prog_type { BPF_PROG_TYPE_CGROUP_SOCK_ADDR, ... };
    enum bpf_func_id { BPF_FUNC_set_retval, ... };
    static const int BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET6_CONNECT;
    static const int BPF_CGROUP_UDP4_SENDMSG, BPF_CGROUP_UDP6_SENDMSG;
    static const int BPF_CGROUP_UDP4_RECVMSG, BPF_CGROUP_UDP6_RECVMSG;
    static const int BPF_CGROUP_INET4_GETPEERNAME, BPF_CGROUP_INET6_GETPEERNAME;
    static const int BPF_MAP_TYPE_PERCPU_ARRAY;
    static const int BPF_F_RDONLY;

    struct bpf_map_info {
        uint32_t type, id, key_size, value_size, max_entries, map_flags;
        char name[...];
        ...;
    };

    struct bpf_object *cm_object_open(const char *path, const char *pin_root);
    int cm_object_set(struct bpf_object *object, const char *name, const void *value, size_t size);
    int bpf_object__load(struct bpf_object *object);
    void bpf_object__close(struct bpf_object *object);
    struct bpf_map *bpf_object__find_map_by_name(const struct bpf_object *object, const char *name);
    struct bpf_program *bpf_object__find_program_by_name(
        const struct bpf_object *object, const char *name);
    int bpf_map__set_max_entries(struct bpf_map *map, uint32_t max_entries);
    int bpf_map__fd(const struct bpf_map *map);
    int bpf_program__fd(const struct bpf_program *program);

    int cm_object_get(const char *path, uint32_t flags);
    int bpf_obj_pin(int fd, const char *path);
    int cm_map_info(int fd, struct bpf_map_info *info);
    int bpf_map_lookup_elem(int fd, const void *key, void *value);
    int bpf_map_update_batch(
        int fd, const void *keys, const void *values, uint32_t *count, const void *options);
    int bpf_map_delete_batch(int fd, const void *keys, uint32_t *count, const void *options);
    int bpf_map_lookup_batch(
        int fd, void *in_batch, void *out_batch, void *keys, void *values, uint32_t *count,
        const void *options);

    int cm_link_create(int program_fd, int target, int attach_type, bool first);
    int cm_link_target(int fd, int *type, uint64_t *target);
    int cm_filter_set(int program_fd, int ifindex, bool egress, uint32_t handle);
    int cm_filter_delete(int ifindex, bool egress, uint32_t handle);
    int bpf_link_update(int fd, int program_fd, const void *options);

    int cm_is_bpffs(const char *path);
    int libbpf_num_possible_cpus(void);
    int libbpf_probe_bpf_helper(enum bpf_prog_type type, enum bpf_func_id id, const void *options);

    void cm_log_start(void);
    const char *cm_log_end(void);
""")

ffibuilder.set_source(
    "agent.kernel._libbpf",
    r"""
    #include <errno.h>
    #include <stdbool.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/vfs.h>

    #include <bpf/bpf.h>
    #include <bpf/btf.h>
    #include <bpf/libbpf.h>
    #include <linux/bpf.h>
    #include <linux/magic.h>

    static __thread FILE *log_file;
    static __thread char *log_text;
    static __thread size_t log_size;

    static int keep_log(enum libbpf_print_level level, const char *format, va_list args)
    {
        if (log_file && level != LIBBPF_DEBUG)
            vfprintf(log_file, format, args);
        return 0;
    }

    /* Keep what libbpf says in this thread, until cm_log_end(). */
    static void cm_log_start(void)
    {
        libbpf_set_print(keep_log);
        free(log_text);
        log_text = NULL;
        log_file = open_memstream(&log_text, &log_size);
    }

    /* What was said; valid until the next cm_log_start(). */
    static const char *cm_log_end(void)
    {
        if (log_file)
            fclose(log_file);
        log_file = NULL;
        return log_text ? log_text : "";
    }

    static struct bpf_object *cm_object_open(const char *path, const char *pin_root)
    {
        LIBBPF_OPTS(bpf_object_open_opts, options, .pin_root_path = pin_root);

        return bpf_object__open_file(path, &options);
    }

    /* Set the `const volatile` variable `name` before loading; -ENOENT without one of that size. */
    static int cm_object_set(struct bpf_object *object, const char *name, const void *value,
                             size_t size)
    {
        struct bpf_map *map = bpf_object__find_map_by_name(object, ".rodata");
        const struct btf *btf = bpf_object__btf(object);
        int section = btf ? btf__find_by_name_kind(btf, ".rodata", BTF_KIND_DATASEC) : -ENOENT;
        const struct btf_var_secinfo *variable;
        const struct btf_type *type;
        size_t total;
        char *data;

        if (!map || section < 0)
            return -ENOENT;
        data = (char *)bpf_map__initial_value(map, &total);
        type = btf__type_by_id(btf, section);
        variable = btf_var_secinfos(type);
        for (int i = 0; i < btf_vlen(type); i++, variable++) {
            const struct btf_type *of = btf__type_by_id(btf, variable->type);

            if (strcmp(btf__name_by_offset(btf, of->name_off), name) || variable->size != size)
                continue;
            memcpy(data + variable->offset, value, size);
            return 0;
        }
        return -ENOENT;
    }

    static int cm_object_get(const char *path, uint32_t flags)
    {
        LIBBPF_OPTS(bpf_obj_get_opts, options, .file_flags = flags);

        return bpf_obj_get_opts(path, &options);
    }

    static int cm_map_info(int fd, struct bpf_map_info *info)
    {
        uint32_t size = sizeof(*info);

        memset(info, 0, sizeof(*info));
        return bpf_obj_get_info_by_fd(fd, info, &size);
    }

    #define BEFORE (1 << 3) /* BPF_F_BEFORE; of no other program: of all */

    static int cm_link_create(int program_fd, int target, int attach_type, bool first)
    {
        LIBBPF_OPTS(bpf_link_create_opts, options, .flags = first ? BEFORE : 0);

        return bpf_link_create(program_fd, target, attach_type, &options);
    }

    /*
     * The id of a link's cgroup or the index of its interface; 0 when that is gone. An index stands
     * first among the details of every link type to an interface, also of those that are younger
     * than this header.
     */
    static int cm_link_target(int fd, int *type, uint64_t *target)
    {
        struct bpf_link_info info = {};
        uint32_t size = sizeof(info);
        int error = bpf_obj_get_info_by_fd(fd, &info, &size);

        if (error)
            return error;
        *type = info.type;
        *target = info.type == BPF_LINK_TYPE_CGROUP ? info.cgroup.cgroup_id : info.xdp.ifindex;
        return 0;
    }

    /* STABLE API: where the next agent finds its filters among those of others. */
    #define FILTER_PRIORITY 0x636d

    static struct bpf_tc_hook filter_hook(int ifindex, bool egress)
    {
        LIBBPF_OPTS(bpf_tc_hook, hook, .ifindex = ifindex,
                    .attach_point = egress ? BPF_TC_EGRESS : BPF_TC_INGRESS);

        return hook;
    }

    /* Have a clsact filter with this program; one of the same handle is replaced atomically. */
    static int cm_filter_set(int program_fd, int ifindex, bool egress, uint32_t handle)
    {
        struct bpf_tc_hook hook = filter_hook(ifindex, egress);
        LIBBPF_OPTS(bpf_tc_opts, options, .prog_fd = program_fd, .flags = BPF_TC_F_REPLACE,
                    .priority = FILTER_PRIORITY, .handle = handle);
        int error = bpf_tc_hook_create(&hook);

        return error && error != -EEXIST ? error : bpf_tc_attach(&hook, &options);
    }

    static int cm_filter_delete(int ifindex, bool egress, uint32_t handle)
    {
        struct bpf_tc_hook hook = filter_hook(ifindex, egress);
        LIBBPF_OPTS(bpf_tc_opts, options, .priority = FILTER_PRIORITY, .handle = handle);

        return bpf_tc_detach(&hook, &options);
    }

    static int cm_is_bpffs(const char *path)
    {
        struct statfs info;

        return statfs(path, &info) ? -errno : info.f_type == BPF_FS_MAGIC;
    }
    """,
    libraries=["bpf"],
)
