using System;
using System.IO;
using System.Net;
using System.Net.Http;
using System.Net.Sockets;
using System.Threading;
using System.Threading.Tasks;
using Grpc.Net.Client;

namespace TileCache.Client
{
    /// <summary>Opens channels on a daemon's Unix socket.</summary>
    public static class TileCacheChannel
    {
        private const int MaxMessageBytes = 64 * 1024 * 1024;

        private static readonly TimeSpan KeepAliveDelay = TimeSpan.FromSeconds(10);
        private static readonly TimeSpan KeepAliveTimeout = TimeSpan.FromSeconds(20);

        /// <summary>
        /// A channel on a daemon's socket. It connects with its first call, and anew when the daemon was restarted.
        /// Idempotent calls are retried while the daemon is unavailable, at most three times and within their deadline.
        /// Keep one for the life of the program; dispose it at the end.
        /// </summary>
        /// <param name="socketPath">For example <c>/run/tilecache/tilecache.sock</c>.</param>
        /// <returns>A channel for the generated clients.</returns>
        public static GrpcChannel Open(string socketPath)
        {
            var endPoint = new UnixDomainSocketEndPoint(socketPath);
            var handler = new SocketsHttpHandler
            {
                UseProxy = false,
                KeepAlivePingDelay = KeepAliveDelay,
                KeepAlivePingTimeout = KeepAliveTimeout,
                KeepAlivePingPolicy = HttpKeepAlivePingPolicy.WithActiveRequests,
                ConnectCallback = (_, cancellationToken) => ConnectAsync(endPoint, cancellationToken),
            };
            // The address gives no more than the scheme and the authority that is sent.
            return GrpcChannel.ForAddress("http://localhost", new GrpcChannelOptions
            {
                HttpHandler = handler,
                DisposeHttpClient = true,
                MaxReceiveMessageSize = MaxMessageBytes,
                MaxSendMessageSize = MaxMessageBytes,
                ServiceConfig = RetryPolicies.CreateServiceConfig(),
            });
        }

        private static async ValueTask<Stream> ConnectAsync(EndPoint endPoint, CancellationToken cancellationToken)
        {
            var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            try
            {
                await socket.ConnectAsync(endPoint, cancellationToken).ConfigureAwait(false);
                return new NetworkStream(socket, ownsSocket: true);
            }
            catch
            {
                socket.Dispose();
                throw;
            }
        }
    }
}
