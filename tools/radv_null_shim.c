// A stand-in libvulkan.so.1 that lets wgpu (and other Vulkan programs) open RADV's null device, so that shaders are
// compiled to real RDNA code on a machine without the card. It compiles; it never executes: results are garbage.
//
//   gcc -shared -fPIC -O1 radv_null_shim.c -o DIR/libvulkan.so.1 -ldl        (isa/driver.py does; -DREAL='"PATH"' names
//   the real loader where it is not Debian's on x86-64)
//   LD_LIBRARY_PATH=DIR RADV_FORCE_FAMILY=gfx1100 VK_ICD_FILENAMES=.../radeon_icd.x86_64.json \
//   RADV_DEBUG=shaders,shaderstats,nocache  PROGRAM      # disassembly and statistics on stderr
//
// What the null device lacks and this file supplies: fences and semaphores, a memory heap, aligned mappings, command
// recording and submission. Everything else goes to the real loader.
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vulkan.h>

#ifndef REAL
#define REAL "/usr/lib/x86_64-linux-gnu/libvulkan.so.1"
#endif
static void *real;
static PFN_vkGetInstanceProcAddr real_gipa;
static PFN_vkGetDeviceProcAddr real_gdpa;
static PFN_vkGetBufferMemoryRequirements real_requirements;
static PFN_vkAllocateMemory real_allocate;

static void init(void) {
    if (real) return;
    real = dlopen(REAL, RTLD_NOW);
    real_gipa = (PFN_vkGetInstanceProcAddr)dlsym(real, "vkGetInstanceProcAddr");
    real_gdpa = (PFN_vkGetDeviceProcAddr)dlsym(real, "vkGetDeviceProcAddr");
}

// Synchronisation: handles are numbers, every wait succeeds, every counter is far ahead.
static unsigned long next_handle = 0x1000;
static VkResult make_handle(VkDevice d, const void *info, const VkAllocationCallbacks *a, void *out) {
    *(unsigned long *)out = next_handle += 16;
    return VK_SUCCESS;
}
static VkResult counter(VkDevice d, VkSemaphore s, uint64_t *value) { *value = ~0ull >> 1; return VK_SUCCESS; }
static VkResult succeed() { return VK_SUCCESS; }

// Memory: one heap and one type that is everything at once; mappings come from the host allocator, page aligned.
static void one_heap(VkPhysicalDeviceMemoryProperties *m) {
    m->memoryHeapCount = m->memoryTypeCount = 1;
    m->memoryHeaps[0] = (VkMemoryHeap){64ull << 30, VK_MEMORY_HEAP_DEVICE_LOCAL_BIT};
    m->memoryTypes[0] = (VkMemoryType){VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                                       VK_MEMORY_PROPERTY_HOST_COHERENT_BIT | VK_MEMORY_PROPERTY_HOST_CACHED_BIT, 0};
}
static void memory_properties(VkPhysicalDevice p, VkPhysicalDeviceMemoryProperties *m) { one_heap(m); }
static void memory_properties2(VkPhysicalDevice p, VkPhysicalDeviceMemoryProperties2 *m) { one_heap(&m->memoryProperties); }
static void requirements(VkDevice d, VkBuffer b, VkMemoryRequirements *r) { real_requirements(d, b, r); r->memoryTypeBits = 1; }

static struct { VkDeviceMemory memory; size_t size; void *host; } blocks[1 << 16];
static int block_count;
static VkResult allocate(VkDevice d, const VkMemoryAllocateInfo *info, const VkAllocationCallbacks *a, VkDeviceMemory *m) {
    VkResult result = real_allocate(d, info, a, m);
    if (result == VK_SUCCESS && block_count < (1 << 16)) { blocks[block_count].memory = *m; blocks[block_count++].size = info->allocationSize; }
    return result;
}
static VkResult map(VkDevice d, VkDeviceMemory m, VkDeviceSize offset, VkDeviceSize size, VkMemoryMapFlags f, void **out) {
    for (int i = block_count - 1; i >= 0; i--) if (blocks[i].memory == m) {
        if (!blocks[i].host && posix_memalign(&blocks[i].host, 4096, (blocks[i].size + 4095) & ~4095ul)) return VK_ERROR_MEMORY_MAP_FAILED;
        *out = (char *)blocks[i].host + offset;
        return VK_SUCCESS;
    }
    return VK_ERROR_MEMORY_MAP_FAILED;
}

static PFN_vkVoidFunction replace(const char *name, PFN_vkVoidFunction found) {
#define IS(n) (!strcmp(name, n))
#define AS(f) ((PFN_vkVoidFunction)(f))
    if (IS("vkGetInstanceProcAddr")) return AS(vkGetInstanceProcAddr);
    if (IS("vkGetDeviceProcAddr")) return AS(vkGetDeviceProcAddr);
    if (IS("vkCreateSemaphore") || IS("vkCreateFence")) return AS(make_handle);
    if (IS("vkGetSemaphoreCounterValue") || IS("vkGetSemaphoreCounterValueKHR")) return AS(counter);
    if (IS("vkGetPhysicalDeviceMemoryProperties")) return AS(memory_properties);
    if (!strncmp(name, "vkGetPhysicalDeviceMemoryProperties2", 36)) return AS(memory_properties2);
    if (!strncmp(name, "vkCmd", 5) || IS("vkBeginCommandBuffer") || IS("vkEndCommandBuffer") || IS("vkResetCommandPool") ||
        IS("vkResetCommandBuffer") || IS("vkQueueSubmit") || IS("vkQueueWaitIdle") || IS("vkDeviceWaitIdle") ||
        IS("vkWaitForFences") || IS("vkResetFences") || IS("vkGetFenceStatus") || IS("vkDestroyFence") || IS("vkDestroySemaphore") ||
        IS("vkWaitSemaphores") || IS("vkWaitSemaphoresKHR")) return AS(succeed);
    if (!found) return found;
    if (IS("vkGetBufferMemoryRequirements")) { real_requirements = (PFN_vkGetBufferMemoryRequirements)found; return AS(requirements); }
    if (IS("vkAllocateMemory")) { real_allocate = (PFN_vkAllocateMemory)found; return AS(allocate); }
    if (IS("vkMapMemory")) return AS(map);
    return found;
}
PFN_vkVoidFunction vkGetDeviceProcAddr(VkDevice d, const char *name) { init(); return replace(name, real_gdpa(d, name)); }
PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance i, const char *name) { init(); return replace(name, real_gipa(i, name)); }
