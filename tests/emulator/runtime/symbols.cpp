// The names of kernels, which often are local to their file: read from the symbol table of the
// program or library that holds them.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>

#include "engine.h"

namespace emulator::runtime {
namespace {

std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The mangled name of the function at `offset` from where the file is loaded; empty if stripped.
std::string symbol_at(const std::string& file, uintptr_t offset) {
  if (file.size() < sizeof(ElfW(Ehdr))) return "";
  const auto* const header = reinterpret_cast<const ElfW(Ehdr)*>(file.data());
  const auto* const sections = reinterpret_cast<const ElfW(Shdr)*>(file.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const char* const names = file.data() + sections[sections[i].sh_link].sh_offset;
    const auto* const first =
        reinterpret_cast<const ElfW(Sym)*>(file.data() + sections[i].sh_offset);
    const auto* const last = first + sections[i].sh_size / sizeof(*first);
    for (const auto* symbol = first; symbol != last; ++symbol) {
      const bool is_function = (symbol->st_info & 0xf) == STT_FUNC;
      if (is_function && symbol->st_value == offset) return names + symbol->st_name;
    }
  }
  return "";
}

std::string demangle(const std::string& name) {
  int status = 0;
  char* const text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  const std::string demangled = status == 0 ? text : name;
  std::free(text);
  return demangled;
}

std::string find_name(const void* function) {
  Dl_info info = {};
  link_map* map = nullptr;
  if (dladdr1(function, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) != 0) {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(function) - map->l_addr;
    const bool is_program = map->l_name == nullptr || map->l_name[0] == '\0';
    const std::string name =
        symbol_at(read_file(is_program ? "/proc/self/exe" : map->l_name), offset);
    if (!name.empty()) return demangle(name);
  }
  char text[32];
  std::snprintf(text, sizeof(text), "%p", function);
  return text;
}

}  // namespace

std::string name_of_kernel(const void* function) {
  static auto* const known = new std::map<const void*, std::string>;
  const auto found = known->find(function);
  if (found != known->end()) return found->second;
  return (*known)[function] = find_name(function);
}

}  // namespace emulator::runtime
