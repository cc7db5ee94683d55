#include "program/cache.h"

#include <deque>
#include <map>
#include <mutex>

namespace sparseprune {

constexpr size_t kKept = 512;  // kept; the oldest goes first

std::shared_ptr<const Stages> cached_stages(const StagesKey& key,
                                            const std::function<std::unique_ptr<Stages>()>& make) {
  static std::mutex mutex;
  static std::map<StagesKey, std::shared_ptr<const Stages>> kept;
  static std::deque<std::map<StagesKey, std::shared_ptr<const Stages>>::iterator> order;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = kept.find(key);
  if (found != kept.end()) return found->second;
  std::shared_ptr<const Stages> made = make();
  if (order.size() == kKept) {
    kept.erase(order.front());
    order.pop_front();
  }
  order.push_back(kept.emplace(key, made).first);
  return made;
}

}  // namespace sparseprune
