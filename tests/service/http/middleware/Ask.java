import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;

/** Sends a photo with Java's client as it is, which offers an upgrade to HTTP/2; prints the status. */
public class Ask {
    public static void main(String[] arguments) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
            .header("Content-Type", "image/png")
            .POST(HttpRequest.BodyPublishers.ofFile(Path.of(arguments[1])))
            .build();
        HttpClient client = HttpClient.newHttpClient();
        for (int times = 0; times < 2; times++) {
            HttpResponse<byte[]> answer = client.send(request, HttpResponse.BodyHandlers.ofByteArray());
            System.out.println(answer.statusCode() + " " + answer.body().length);
        }
    }
}
