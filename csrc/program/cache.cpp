#include "program/cache.h"

#include <deque>
#include <map>
#include <mutex>

namespace sparseprune {

constexpr size_t kPlans = 512;  // kept; the oldest goes first

std::shared_ptr<const Plan> cached_plan(const PlanKey& key,
                                        const std::function<std::unique_ptr<Plan>()>& make) {
  static std::mutex mutex;
  static std::map<PlanKey, std::shared_ptr<const Plan>> plans;
  static std::deque<std::map<PlanKey, std::shared_ptr<const Plan>>::iterator> order;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  std::shared_ptr<const Plan> plan = make();
  if (order.size() == kPlans) {
    plans.erase(order.front());
    order.pop_front();
  }
  order.push_back(plans.emplace(key, plan).first);
  return plan;
}

}  // namespace sparseprune
