package main

import "fmt"

func main() {
	words := make(chan string)
	go func() { words <- "hello from go" }()
	fmt.Println(<-words)
}
