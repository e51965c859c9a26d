// Plain Java, which offers `Upgrade: h2c` with every request, as Spring AI over it does: `java Ask.java MODEL [URL]`, Java 17.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

public class Ask {
    public static void main(String[] words) throws Exception {
        String url = words.length > 1 ? words[1] : "http://127.0.0.1:8000/v1";
        String body = """
            {"model": "%s", "stream": true, "temperature": 0, "max_tokens": 24,
             "messages": [{"role": "user", "content": "What is the capital of France?"}]}""".formatted(words[0]);
        HttpRequest request = HttpRequest.newBuilder(URI.create(url + "/chat/completions"))
            .header("Content-Type", "application/json")
            .header("Authorization", "Bearer any")
            .timeout(Duration.ofMinutes(2))
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        HttpResponse<java.util.stream.Stream<String>> answer =
            HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofLines());
        answer.body().filter(line -> line.startsWith("data: ")).forEach(System.out::println);
        System.exit(answer.statusCode() == 200 ? 0 : 1);
    }
}
