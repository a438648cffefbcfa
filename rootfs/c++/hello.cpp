#include <iostream>
#include <string>
#include <thread>

int main() {
    std::string text;
    std::thread([&text] { text = "hello from c++"; }).join();
    std::cout << text << std::endl;
}
