#include "float16.hpp"
