import java.util.stream.Collectors;
import java.util.stream.Stream;

public class Hello {
    public static void main(String[] arguments) {
        System.out.println(Stream.of("hello", "from", "java").collect(Collectors.joining(" ")));
    }
}
