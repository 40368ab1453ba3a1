using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Channels;
using System.Threading.Tasks;
using Grpc.Core;
using TileCache.V1;
using Xunit;

namespace TileCache.Client.Tests
{
    /// <summary>A store without a daemon: a test reads each stream's requests, and writes its messages.</summary>
    internal sealed class ScriptedStore : TileMetadataStore.TileMetadataStoreClient
    {
        private static readonly TimeSpan Timeout = TimeSpan.FromSeconds(30);

        private readonly Channel<Stream> streams = Channel.CreateUnbounded<Stream>();

        /// <summary>The limits that it publishes.</summary>
        public Limits Limits { get; set; } = new Limits
        {
            MaxWatchStreams = 32,
            MaxWatchedAreas = 64,
            MaxWatchedBlocks = 1024,
        };

        /// <summary>The stream that is opened next.</summary>
        public async Task<Stream> AcceptAsync()
        {
            using var timer = new CancellationTokenSource(Timeout);
            return await streams.Reader.ReadAsync(timer.Token);
        }

        public override AsyncUnaryCall<GetServerInfoResponse> GetServerInfoAsync(
            GetServerInfoRequest request,
            Metadata? headers = null,
            DateTime? deadline = null,
            CancellationToken cancellationToken = default)
        {
            var answer = new GetServerInfoResponse { ContractVersion = "1.5.0", Limits = Limits };
            return new AsyncUnaryCall<GetServerInfoResponse>(
                Task.FromResult(answer),
                Task.FromResult(new Metadata()),
                () => Status.DefaultSuccess,
                () => new Metadata(),
                () => { });
        }

        public override AsyncDuplexStreamingCall<WatchTilesRequest, WatchTilesResponse> WatchTiles(
            Metadata? headers = null,
            DateTime? deadline = null,
            CancellationToken cancellationToken = default)
        {
            var stream = new Stream();
            streams.Writer.TryWrite(stream);
            return new AsyncDuplexStreamingCall<WatchTilesRequest, WatchTilesResponse>(
                stream,
                stream,
                Task.FromResult(new Metadata()),
                () => Status.DefaultSuccess,
                () => new Metadata(),
                () => { });
        }

        /// <summary>A stream of a replica.</summary>
        internal sealed class Stream : IClientStreamWriter<WatchTilesRequest>, IAsyncStreamReader<WatchTilesResponse>
        {
            private readonly Channel<WatchTilesRequest> requests = Channel.CreateUnbounded<WatchTilesRequest>();
            private readonly Channel<WatchTilesResponse> messages = Channel.CreateUnbounded<WatchTilesResponse>();

            public WriteOptions? WriteOptions { get; set; }

            public WatchTilesResponse Current { get; private set; } = new WatchTilesResponse();

            /// <summary>The next request that the replica sends.</summary>
            public async Task<WatchTilesRequest> ReceiveAsync()
            {
                using var timer = new CancellationTokenSource(Timeout);
                return await requests.Reader.ReadAsync(timer.Token);
            }

            /// <summary>Whether there was a request by now; takes it.</summary>
            public bool HasRequest()
            {
                return requests.Reader.TryRead(out _);
            }

            /// <summary>Sends a message to the replica.</summary>
            public void Send(long number, bool synced, params BlockUpdate[] blocks)
            {
                var message = new WatchTilesResponse
                {
                    Number = number,
                    Synced = synced,
                    Heartbeat = new Heartbeat { AgeMs = 10 },
                };
                message.Blocks.AddRange(new List<BlockUpdate>(blocks));
                messages.Writer.TryWrite(message);
            }

            /// <summary>Ends the stream.</summary>
            public void End(StatusCode code)
            {
                messages.Writer.TryComplete(new RpcException(new Status(code, "scripted")));
            }

            public Task WriteAsync(WatchTilesRequest message)
            {
                requests.Writer.TryWrite(message);
                return Task.CompletedTask;
            }

            public Task CompleteAsync()
            {
                return Task.CompletedTask;
            }

            public async Task<bool> MoveNext(CancellationToken cancellationToken)
            {
                // Throws what the channel was completed with.
                await messages.Reader.WaitToReadAsync(cancellationToken);
                Assert.True(messages.Reader.TryRead(out WatchTilesResponse? message));
                Current = message;
                return true;
            }
        }
    }
}
