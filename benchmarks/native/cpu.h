// The processor as sparseprune.machine.cpu_name() has it.
#pragma once
#include <fstream>
#include <string>

// What /proc/cpuinfo says of the first processor; "" where it does not.
inline std::string cpu_field(const std::string& key) {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind(key + '\t', 0) == 0) return line.substr(line.find(':') + 2);
  return "";
}

// Virtual machines hide what the model is called, but not its numbers.
inline std::string cpu_name() {
  const std::string name = cpu_field("model name"), family = cpu_field("cpu family");
  if (name.empty()) return "unknown";
  return family.empty() ? name : name + " (family " + family + " model " + cpu_field("model") + ")";
}
